/** The frame around every page: where you are, and whether what you see is live. */

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { signedOut } from "./data/api";
import { connection, now, retryNow, runs, server } from "./data/live";
import { signOut, viewer } from "./data/session";
import { moment, plural } from "./format";
import { KEYS } from "./keys";
import { Icon, Logo } from "./parts/icons";
import { dark, toggleTheme } from "./theme";
import { overviewAddress, view } from "./view";
import { helpOpen } from "./views/actions";
import { Compare } from "./views/Compare";
import { Overview } from "./views/Overview";
import { RunPage } from "./views/RunPage";
import { SignIn } from "./views/SignIn";

export function App() {
  const { page, run } = view.value;
  useEffect(() => {
    const needy = [...runs.value.values()].filter((one) => one.needs.length > 0).length;
    const what = page === "run" ? `${run.replace(/^projects\/[^/]+\/runs\//, "")} · mechanicd` : "mechanicd";
    document.title = needy > 0 && page === "overview" ? `(${needy}) ${what}` : what;
  }, [page, run, runs.value]);
  useEffect(() => scrollTo(0, 0), [page, run]);
  return (
    <>
      <Header />
      <Banner />
      {signedOut.value !== null ? (
        <SignIn why={signedOut.value} />
      ) : page === "run" ? (
        <RunPage key={run} />
      ) : page === "compare" ? (
        <Compare />
      ) : (
        <Overview />
      )}
      {helpOpen.value && <Help />}
    </>
  );
}

const STATES = { live: "live", loading: "connecting", lost: "not connected", out: "signed out" } as const;

function Header() {
  const state = connection.value.state;
  return (
    <header class="top">
      <a class="brand" href={overviewAddress()}>
        <Logo />
        mechanicd
      </a>
      <span class={`link-state ${state}`} role="status">
        <i aria-hidden="true" />
        {STATES[state]}
      </span>
      <span class="spacer" />
      {server.value && (
        <span class="server" title={server.value.store}>
          {server.value.version} · up since {moment(server.value.started)}
        </span>
      )}
      <SignedIn />
      <button
        type="button"
        class="ghost"
        onClick={toggleTheme}
        title={dark.value ? "Light (t)" : "Dark (t)"}
        aria-label={dark.value ? "Light colors" : "Dark colors"}
      >
        <Icon name={dark.value ? "sun" : "moon"} />
      </button>
      <button
        type="button"
        class="ghost"
        onClick={() => {
          helpOpen.value = true;
        }}
        title="Keys and search (?)"
        aria-label="Keys and search"
      >
        <Icon name="help" />
      </button>
    </header>
  );
}

/** As whom, if somebody signed in. */
function SignedIn() {
  const who = viewer.value;
  const failed = useSignal(false);
  if (!who?.signed_in) return null;
  const leave = (): void => {
    failed.value = false;
    signOut().catch(() => {
      failed.value = true;
    });
  };
  return (
    <>
      <span class="server" title={`token ${who.id}, role ${who.role}`}>
        {who.project ? `project ${who.project}` : "all projects"}
      </span>
      <button type="button" class="button" onClick={leave}>
        {failed.value ? "Not signed out: try again" : "Sign out"}
      </button>
    </>
  );
}

/** A prominent warning, because everything below it is out of date. */
function Banner() {
  const state = connection.value;
  if (state.state !== "lost") return <Trouble />;
  const seconds = Math.max(0, Math.ceil((state.retryAt - performance.now()) / 1000));
  void now.value;
  return (
    <div class="banner" role="alert">
      <Icon name="alert" />
      <span>
        <b>Not connected since {moment(state.since)}.</b> {state.message}{" "}
        {runs.value.size > 0 && "What you see is from that time. "}Training continues without the server.{" "}
        {seconds > 1 ? "The page will try again." : "Trying again."}
      </span>
      <button type="button" class="button" onClick={retryNow}>
        Try now
      </button>
    </div>
  );
}

/** The page is connected, but its server can't read the store. */
function Trouble() {
  const trouble = server.value?.trouble;
  if (!trouble) return null;
  return (
    <div class="banner" role="alert">
      <Icon name="alert" />
      <span>
        <b>What you see may be out of date:</b> {trouble}. The server keeps trying; see its log.
      </span>
    </div>
  );
}

const SEARCH: readonly (readonly [string, string])[] = [
  ["bert", "in the name or a label"],
  ["/seed[0-3]$/", "a regular expression over project/run"],
  ["batch=256", "a label; also status=, project=, needs="],
  ["opt~adam|lion", "a regular expression over a label"],
  ["S<1e-6", "a value: S, step, lr, base_lr, age>5min, rewinds"],
  ["-word", "runs without it; also batch!=256"],
];

function Help() {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current?.showModal(), []);
  const close = (): void => {
    helpOpen.value = false;
  };
  return (
    <dialog
      ref={dialog}
      class="help"
      aria-label="Keys and search"
      onClose={close}
      onClick={(event) => event.target === dialog.current && close()}
    >
      <div class="help-columns">
        <List title="Keys" items={KEYS} />
        <List
          title="Search"
          items={SEARCH}
          note="A run must match all words. Drag on a chart to zoom in, double-click to zoom out. The address holds the whole view, so you can share the link."
        />
      </div>
      <button type="button" class="button" onClick={close}>
        Close
      </button>
      <p class="says">{plural(runs.value.size, "run")} in the store</p>
    </dialog>
  );
}

function List({ title, items, note }: { title: string; items: readonly (readonly [string, string])[]; note?: string }) {
  return (
    <div>
      <h2>{title}</h2>
      <dl>
        {items.map(([key, says]) => (
          <div key={key}>
            <dt>{title === "Keys" ? key.split("  ").map((one) => <kbd key={one}>{one}</kbd>) : <code>{key}</code>}</dt>
            <dd>{says}</dd>
          </div>
        ))}
      </dl>
      {note && <p>{note}</p>}
    </div>
  );
}

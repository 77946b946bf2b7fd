/** Which runs are alive, what S is doing in each, and which ones need attention. */

import { useMemo } from "preact/hooks";
import { labelKey } from "../data/labels";
import { connection, now, runs } from "../data/live";
import { byWeight, compareRuns, facets, groupRuns, layOut } from "../data/order";
import { hasWord, parseQuery, toggleWord } from "../data/query";
import { type RunItem, STATUSES } from "../data/types";
import { count, plural } from "../format";
import { CopyButton } from "../parts/CopyButton";
import { Icon, StatusIcon } from "../parts/icons";
import { Menu } from "../parts/Menu";
import { RunName } from "../parts/RunName";
import { runAddress, show, view } from "../view";
import { shownRows } from "./actions";
import { ChartPanel, useInks } from "./ChartPanel";
import { LabelChip, Table, words } from "./Table";

/** Without a selection the chart shows this many runs of the table, so that it is never empty. */
const FIRST = 8;
const MOST_GROUPS = 16;

export function Overview() {
  const shown = view.value;
  const all = [...runs.value.values()];
  const query = useMemo(() => parseQuery(shown.query), [shown.query]);
  const present = all.filter((run) => run.archive_time === null);
  const matching = all.filter((run) => query.matches(run, now.value)).sort(compareRuns(shown.sort));
  const rows = layOut(matching, new Set(shown.pinned), shown.group, new Set(shown.closed));
  const inOrder = rows.flatMap((row) => (row.kind === "run" ? [row.run] : []));
  shownRows.value = inOrder.map((run) => run.name);

  const chosen = shown.selected.filter((name) => runs.value.has(name));
  const names = chosen.length > 0 ? chosen : inOrder.slice(0, FIRST).map((run) => run.name);
  const inks = useInks(names);
  const members = useMemo(
    () =>
      (shown.group ? [...groupRuns(matching, shown.group)].slice(0, MOST_GROUPS) : []).map(([label, group]) => ({
        label,
        runs: group.map((run) => run.name).sort(),
      })),
    [
      shown.group,
      matching
        .map((run) => run.name)
        .sort()
        .join(","),
    ],
  );
  const groupInks = useInks(members.map((group) => group.label));
  const asBands = shown.group !== "" && shown.bands;

  if (all.length === 0) return connection.value.state === "loading" ? <Loading /> : <NoRuns />;
  return (
    <main class="overview">
      <Attention runs={present} archived={all.length - present.length} />
      <ChartPanel
        names={names}
        inks={inks}
        chosen={chosen.length > 0}
        groups={shown.group ? { key: shown.group, members, inks: groupInks } : null}
        height={264}
        says={
          chosen.length > 0
            ? plural(chosen.length, "selected run")
            : `first ${names.length} of ${plural(matching.length, "run")}`
        }
      />
      <section class="panel table-panel" aria-label="Runs">
        <Toolbar all={present} matching={matching.length} problem={query.problem} />
        {matching.length > 0 ? (
          <Table rows={rows} inks={asBands ? NO_INKS : inks} groupInks={asBands ? groupInks : NO_INKS} />
        ) : (
          <div class="empty">
            <p>No run matches the search.</p>
            <button type="button" class="button" onClick={() => show({ query: "" })}>
              Show all {count(present.length)}
            </button>
          </div>
        )}
      </section>
    </main>
  );
}

const NO_INKS = new Map();
const ARCHIVED = "archived=true";

/** The runs that need attention, with the reason in words; a short line if there are none. */
function Attention({ runs: all, archived }: { runs: readonly RunItem[]; archived: number }) {
  const needy = all.filter((run) => run.needs.length > 0).sort(compareRuns({ key: "needs", down: false }));
  const alive = all.filter((run) => run.status === "running").length;
  const query = view.value.query;
  return (
    <section class="attention" aria-label="What needs you">
      <div class="tallies">
        {STATUSES.map((status) => {
          const n = all.filter((run) => run.status === status).length;
          const word = `status=${status}`;
          return (
            <button
              key={status}
              type="button"
              class={`tally ${hasWord(query, word) ? "on" : ""}`}
              aria-pressed={hasWord(query, word)}
              disabled={n === 0}
              onClick={() => show({ query: toggleWord(query, word) })}
            >
              <StatusIcon status={status} />
              <b>{count(n)}</b>
              <span>{status}</span>
            </button>
          );
        })}
        {archived > 0 && (
          <button
            type="button"
            class={`tally ${hasWord(query, ARCHIVED) ? "on" : ""}`}
            aria-pressed={hasWord(query, ARCHIVED)}
            onClick={() => show({ query: toggleWord(query, ARCHIVED) })}
          >
            <b>{count(archived)}</b>
            <span>archived</span>
          </button>
        )}
      </div>
      {needy.length === 0 ? (
        <p class="well">
          <Icon name="check" /> {alive ? "No run needs you." : "Nothing is running, and no run needs you."}
        </p>
      ) : (
        <ul class="needs">
          {needy
            .slice(0, 3)
            .map((run) => ({ run, need: byWeight(run.needs)[0]! }))
            .map(({ run, need }) => (
              <li key={run.name}>
                <a href={runAddress(run.name)}>
                  <Icon name="alert" />
                  <span>
                    <strong>
                      <RunName run={run.run} />
                    </strong>
                    <small title={need.message}>
                      <em>{words(need.kind)}</em> {need.message}
                    </small>
                  </span>
                </a>
              </li>
            ))}
          <li class="all">
            <button
              type="button"
              class={hasWord(query, "needs=any") ? "on" : ""}
              aria-pressed={hasWord(query, "needs=any")}
              onClick={() => show({ query: toggleWord(query, "needs=any") })}
            >
              <b>{count(needy.length)}</b> {needy.length === 1 ? "needs" : "need"} you
            </button>
          </li>
        </ul>
      )}
    </section>
  );
}

function Toolbar({ all, matching, problem }: { all: readonly RunItem[]; matching: number; problem: string | null }) {
  const shown = view.value;
  const labels = facets(all);
  return (
    <div class="panel-head toolbar">
      <div class={`search ${problem ? "wrong" : ""}`}>
        <Icon name="search" />
        <input
          id="search"
          type="search"
          value={shown.query}
          placeholder="bert   /seed[0-3]$/   batch=256   S<1e-6"
          aria-label="Search runs: words, /expression/, label=value, S<1e-6"
          aria-invalid={problem !== null}
          aria-describedby="search-says"
          spellcheck={false}
          autocomplete="off"
          onInput={(event) => show({ query: event.currentTarget.value })}
        />
        <kbd>/</kbd>
      </div>
      <Menu label="Labels" title="Filter by label">
        {labels.size === 0 && (
          <p>No run has labels. Set them when you create the optimizer: labels={'{"batch": "256"}'}</p>
        )}
        {[...labels].map(([key, values]) => (
          <div class="facet" key={key}>
            <h3>{key}</h3>
            {[...values].slice(0, 24).map(([value, n]) => (
              <LabelChip key={value} name={key} value={value} query={shown.query}>
                <small>{n}</small>
              </LabelChip>
            ))}
          </div>
        ))}
      </Menu>
      <label class="group-by">
        <span>Group by</span>
        <select value={shown.group} onChange={(event) => show({ group: event.currentTarget.value, closed: [] })}>
          <option value="">nothing</option>
          {["status", "project", ...[...labels.keys()].map(labelKey)].map((key) => (
            <option key={key} value={key}>
              {key}
            </option>
          ))}
        </select>
      </label>
      <span id="search-says" class={`found ${problem ? "bad" : ""}`} aria-live="polite">
        {problem ??
          (matching === all.length ? plural(all.length, "run") : `${count(matching)} of ${plural(all.length, "run")}`)}
      </span>
      <span class="spacer" />
      {shown.selected.length > 0 && (
        <button type="button" class="button" onClick={() => show({ selected: [] })}>
          Clear {shown.selected.length} selected
        </button>
      )}
    </div>
  );
}

function Loading() {
  return (
    <main class="overview" aria-busy="true">
      <p class="sr">Loading the runs</p>
      <div class="panel bones" style={{ height: "60px" }} />
      <div class="panel bones" style={{ height: "320px" }} />
      <div class="panel bones" style={{ height: "360px" }} />
    </main>
  );
}

const FIRST_RUN = `import torch
from mechanicd.torch import mechanize

model = torch.nn.Linear(8, 1)
opt = mechanize(torch.optim.AdamW(model.parameters(), lr=1.0),
                run="first/seed0", target="127.0.0.1:50051", labels={"batch": "256"})`;

function NoRuns() {
  return (
    <main class="lonely">
      <h1>No runs yet</h1>
      <p>A run appears here when it takes its first step. Wrap an optimizer and train:</p>
      <div class="code">
        <pre>{FIRST_RUN}</pre>
        <CopyButton text={FIRST_RUN} />
      </div>
      <p>
        Or watch a small fleet of real training runs: <code>mechanicd demo</code>
      </p>
    </main>
  );
}

/** One run: its current state, all its series on one axis with its events, its configuration, and how to resume it. */

import { type Signal, useSignal } from "@preact/signals";
import { useMemo, useRef, useState } from "preact/hooks";
import type uPlot from "uplot";
import { Chart } from "../charts/Chart";
import { type Curve, eventColour, type Mark } from "../charts/paint";
import { ink } from "../charts/palette";
import * as api from "../data/api";
import { useFetched } from "../data/fetched";
import { runs } from "../data/live";
import { useSeries } from "../data/series";
import type { RunDetail, RunItem, Series, SeriesRun } from "../data/types";
import { count, moment, NONE, number, plural, span } from "../format";
import { Ago } from "../parts/Ago";
import { savePng, saveRun } from "../parts/download";
import { Icon, StatusIcon } from "../parts/icons";
import { Legend } from "../parts/Legend";
import { Menu } from "../parts/Menu";
import { overviewAddress, show, view, yAxis } from "../view";
import { resetZoom } from "./actions";
import { AxisControls, grain, roundPixels, X_TITLES, zoomed } from "./ChartPanel";
import { Facts } from "./Facts";
import { askOf, Layers, Small, useMarks } from "./RunSeries";
import { Branches, Events, lookAt, Resume } from "./RunSide";
import { words } from "./Table";

const SMALL: readonly Series[] = [
  "effective_lr",
  "base_lr",
  "h",
  "grad_norm",
  "param_norm",
  "delta_dot_g",
  "delta_dot_x",
];

export function RunPage() {
  const { run: name } = view.value;
  const live = runs.value.get(name);
  // Events, branches and sessions change rarely, so they are fetched when these facts change, not at every step.
  const needs = live?.needs.map((need) => need.kind).join();
  const key = `${name} ${live?.sessions} ${live?.rewinds} ${live?.status} ${needs} ${Math.floor(Date.now() / 60_000)}`;
  const { value: detail, error } = useFetched(key, (signal) => api.run(name, signal));
  if (!detail || detail.run.name !== name)
    return error ? (
      <NoRun name={name} message={error.message} />
    ) : (
      <main class="run-page" aria-busy="true">
        <div class="panel bones" style={{ height: "480px" }} />
      </main>
    );
  return <Loaded detail={detail} run={live ?? detail.run} />;
}

function Loaded({ detail, run }: { detail: RunDetail; run: RunItem }) {
  const shown = view.value;
  const cursor = useSignal<number | null>(null);
  const [width, setWidth] = useState(900);
  const several = run.groups > 1;
  return (
    <main class="run-page">
      <Title run={run} />
      <div class="run-columns">
        <div class="run-main">
          <MainChart detail={detail} run={run} cursor={cursor} width={width} onWidth={setWidth} />
          {several && <Layers run={run} width={width} />}
          <section class="panel" aria-label="All series">
            <div class="panel-head">
              <h2>All series</h2>
              <span class="says">with a shared cursor and zoom</span>
            </div>
            <div class="multiples">
              {SMALL.map((series) => (
                <Small key={series} series={series} run={run} detail={detail} />
              ))}
            </div>
          </section>
        </div>
        <aside class="run-side">
          <Resume detail={detail} />
          <Events events={detail.events} run={run} />
          {detail.branches.length > 1 && <Branches detail={detail} branch={shown.branch} />}
          <section class="panel">
            <div class="panel-head">
              <h2>Configuration</h2>
            </div>
            <Facts facts={[...Object.entries(run.labels), ...Object.entries(detail.config)]} />
          </section>
        </aside>
      </div>
    </main>
  );
}

function Title({ run }: { run: RunItem }) {
  return (
    <header class="run-head">
      <a class="back" href={overviewAddress()} title="All runs (Escape)">
        <Icon name="back" /> All runs
      </a>
      <div class="run-title">
        <h1>
          <span class="project">{run.project}/</span>
          {run.run}
        </h1>
        <span class={`pill status-${run.status}`}>
          <StatusIcon status={run.status} /> {run.status}
        </span>
        {run.archive_time !== null && <span class="pill">archived</span>}
        {run.status_message && <span class="status-message">{run.status_message}</span>}
      </div>
      {run.needs.length > 0 && (
        <ul class="needs wide">
          {run.needs.map((need) => (
            <li key={need.kind}>
              <span class="need-line">
                <Icon name="alert" />
                <span>
                  <em>{words(need.kind)}</em> {need.message}
                  {need.step !== null && (
                    <button type="button" class="link" onClick={() => lookAt(run, need.step!)}>
                      look at step {count(need.step)}
                    </button>
                  )}
                </span>
              </span>
            </li>
          ))}
        </ul>
      )}
      <dl class="figures">
        <Figure name="S now" value={number(run.S, 3)} strong />
        <Figure name="effective lr" value={number(run.effective_lr, 3)} />
        <Figure name="step" value={count(run.step)} />
        <Figure name="last step" value={<Ago time={run.step_time} />} />
        <Figure name="a step takes" value={run.interval === null ? NONE : span(run.interval * 1000)} />
        <Figure name="sessions" value={count(run.sessions)} />
        <Figure name="rewinds" value={count(run.rewinds)} />
        <Figure name="scale groups" value={count(run.groups)} />
        <Figure name="created" value={moment(run.create_time)} />
      </dl>
    </header>
  );
}

function Figure({ name, value, strong = false }: { name: string; value: preact.ComponentChildren; strong?: boolean }) {
  return (
    <div class={strong ? "strong" : ""}>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

interface MainProps {
  readonly detail: RunDetail;
  readonly run: RunItem;
  readonly cursor: Signal<number | null>;
  readonly width: number;
  readonly onWidth: (pixels: number) => void;
}

function MainChart({ detail, run, cursor, width, onWidth }: MainProps) {
  const shown = view.value;
  const plot = useRef<uPlot | null>(null);
  const names = useMemo(() => [run.name], [run.name]);
  const series = "S";
  const y = yAxis(shown, series);
  const { lines, loading, error } = useSeries(names, askOf(series, width));
  const line = lines.get(run.name);
  const abandoned = useBranches(detail, run.name, width);
  const curves: Curve[] = line
    ? [
        ...abandoned,
        {
          id: run.name,
          label: run.run,
          ink: ink(0),
          columns: line.columns,
          spread: run.groups > 1 && shown.scale === null,
        },
      ]
    : [];
  const marks = useMarks(detail, line, shown.x);
  const group = shown.scale === null ? null : (detail.group_names[shown.scale] ?? null);
  const title = `S of ${run.run}${group === null ? "" : ` · ${group}`}`;
  const entries = line
    ? [
        {
          id: run.name,
          label: group ?? (run.groups > 1 ? "largest of all groups" : "S"),
          ink: ink(0),
          columns: line.columns,
        },
      ]
    : [];
  return (
    <section class="panel chart-panel" aria-label="S">
      <div class="panel-head">
        <div class="controls">
          <h2>S</h2>
          {detail.group_names.length > 1 && (
            <label>
              <span class="sr">Scale group</span>
              <select
                value={shown.scale ?? ""}
                onChange={(event) =>
                  show({ scale: event.currentTarget.value === "" ? null : Number(event.currentTarget.value) })
                }
              >
                <option value="">largest of {count(detail.group_names.length)} groups</option>
                {detail.group_names.slice(0, 1000).map((one, i) => (
                  <option key={one} value={i}>
                    {one}
                  </option>
                ))}
              </select>
            </label>
          )}
          <AxisControls y={y} />
        </div>
        <div class="panel-tools">
          {(shown.x0 !== null || shown.x1 !== null) && (
            <button type="button" class="button" onClick={resetZoom}>
              Reset zoom
            </button>
          )}
          <Menu label={<Icon name="down" />} title="Download" class="right">
            <button
              type="button"
              onClick={() => plot.current && savePng(plot.current, `${title} over ${X_TITLES[shown.x]}`, entries)}
            >
              This chart as PNG
            </button>
            <button type="button" onClick={() => saveRun(run.name, "csv", shown.branch)}>
              Every step as CSV
            </button>
            <button type="button" onClick={() => saveRun(run.name, "json", shown.branch)}>
              Every step as JSON
            </button>
          </Menu>
        </div>
      </div>
      <div class="chart-box" aria-busy={loading}>
        <Chart
          series={series}
          curves={curves}
          marks={marks}
          x={shown.x}
          y={y}
          smoothing={shown.smooth}
          x0={shown.x0}
          x1={shown.x1}
          height={280}
          sync="run"
          cursor={cursor}
          handle={plot}
          onZoom={(x0, x1) => show(zoomed(shown.x, x0, x1), "push")}
          onReset={resetZoom}
          onWidth={onWidth}
        />
        {error && <p class="chart-note bad">{error}</p>}
        {line && line.columns.x.length === 0 && <p class="chart-note">No steps yet. The first one will appear here.</p>}
        <p class="grain">{line ? grain(curves.slice(-1), lines, y) : ""}</p>
      </div>
      <div class="run-legend">
        <Legend entries={entries} cursor={cursor} x={shown.x} />
        <MarkKey marks={marks} line={line} />
      </div>
    </section>
  );
}

/** Curves of the steps that rewinds abandoned. */
function useBranches(detail: RunDetail, name: string, width: number): Curve[] {
  const { x, x0, x1, scale, branch } = view.value;
  const others = detail.branches.filter((one) => one.branch !== branch).slice(0, 8);
  const key = others.length ? JSON.stringify([name, others, x, x0, x1, scale, roundPixels(width)]) : "";
  const { value } = useFetched(key, (signal) =>
    Promise.all(others.map((one) => api.series([name], { ...askOf("S", width), branch: one.branch }, signal))),
  );
  return (key && value ? value : []).flatMap((found, i) =>
    found.map((line) => ({
      id: `branch ${others[i]?.branch}`,
      label: `branch ${others[i]?.branch}`,
      ink: ink(5),
      columns: line.columns,
      pale: true,
      spread: detail.run.groups > 1 && scale === null,
    })),
  );
}

function MarkKey({ marks, line }: { marks: readonly Mark[]; line: SeriesRun | undefined }) {
  const kinds = new Map<string, string>();
  for (const mark of marks) kinds.set(eventColour(mark.kind), KIND_TITLES[eventColour(mark.kind)] ?? "");
  const sum = (all: readonly number[] | undefined): number => (all ?? []).reduce((a, b) => a + b, 0);
  const [skipped, held] = [sum(line?.columns.non_finite), sum(line?.columns.held)];
  return (
    <ul class="mark-key">
      {[...kinds].map(([colour, title]) => (
        <li key={colour}>
          <i class="dot" style={{ background: `var(${colour})` }} /> {title}
        </li>
      ))}
      {skipped > 0 && (
        <li>
          <b class="bad">×</b> {plural(skipped, "non-finite step")} skipped
        </li>
      )}
      {held > 0 && (
        <li>
          <b class="held">|</b> {plural(held, "step")} held
        </li>
      )}
    </ul>
  );
}

const KIND_TITLES: Record<string, string> = {
  "--event-session": "session",
  "--event-rewind": "rewind",
  "--event-bad": "outage, gap or fence",
  "--event-end": "closed",
};

function NoRun({ name, message }: { name: string; message: string }) {
  return (
    <main class="lonely">
      <h1>This run can't be shown</h1>
      <p>{message}</p>
      <p>
        <code>{name}</code>
      </p>
      <a class="button" href={overviewAddress()}>
        All runs
      </a>
    </main>
  );
}

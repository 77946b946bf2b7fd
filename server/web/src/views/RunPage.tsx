/** One run: what it does now, all its series on one time axis with the events on it, what it is, how to go on with it. */

import { type Signal, useSignal } from "@preact/signals";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type uPlot from "uplot";
import { Chart, cursorLabel } from "../charts/Chart";
import { Heatmap } from "../charts/Heatmap";
import { type Curve, eventColour, type Mark } from "../charts/paint";
import { ink } from "../charts/palette";
import * as api from "../data/api";
import { useFetched } from "../data/fetched";
import { runs } from "../data/live";
import { useSeries } from "../data/series";
import {
  type RunDetail,
  type RunEvent,
  type RunItem,
  SERIES,
  type Series,
  type SeriesAsk,
  type SeriesRun,
} from "../data/types";
import { count, moment, NONE, number, plural, span } from "../format";
import { Ago } from "../parts/Ago";
import { CopyButton } from "../parts/CopyButton";
import { savePng, saveRun } from "../parts/download";
import { Icon, StatusIcon } from "../parts/icons";
import { Legend } from "../parts/Legend";
import { Menu } from "../parts/Menu";
import { overviewAddress, show, view, yAxis } from "../view";
import { resetZoom } from "./actions";
import { AxisControls, grain, roundPixels, X_TITLES, zoomed } from "./ChartPanel";
import { Facts } from "./Facts";
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
  // Events, branches and sessions change seldom: with these, not with every step.
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
              <span class="says">one cursor, one zoom</span>
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

/** The steps around one. */
function lookAt(run: RunItem, step: number): void {
  const half = Math.max(50, Math.round(run.step * 0.02));
  show({ x: "step", x0: Math.max(1, step - half), x1: Math.max(2, step + half) }, "push");
}

const askOf = (series: Series, pixels: number): SeriesAsk => {
  const { x, x0, x1, scale, branch } = view.value;
  return { series, group: scale, branch, x, x0, x1, pixels: roundPixels(pixels) };
};

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
          label: group ?? (run.groups > 1 ? "largest of the groups" : "S"),
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
              This chart, PNG
            </button>
            <button type="button" onClick={() => saveRun(run.name, "csv", shown.branch)}>
              Every step, CSV
            </button>
            <button type="button" onClick={() => saveRun(run.name, "json", shown.branch)}>
              Every step, JSON
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
        {line && line.columns.x.length === 0 && (
          <p class="chart-note">No steps here yet. The first one will show by itself.</p>
        )}
        <p class="grain">{line ? grain(curves.slice(-1), lines, y) : ""}</p>
      </div>
      <div class="run-legend">
        <Legend entries={entries} cursor={cursor} x={shown.x} />
        <MarkKey marks={marks} line={line} />
      </div>
    </section>
  );
}

/** Curves of the steps that rewinds gave up. */
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

/** Events on the axis that is shown; a step's own place is looked up in the columns. */
function useMarks(detail: RunDetail, line: SeriesRun | undefined, x: string): Mark[] {
  return useMemo(
    () =>
      detail.events.flatMap((event) => {
        if (x === "step") return [{ x: event.step, kind: event.kind }];
        if (x === "time") return [{ x: event.time, kind: event.kind }];
        const columns = line?.columns;
        const at = columns ? columns.last.findIndex((last) => last >= event.step) : -1;
        return columns && at >= 0 ? [{ x: columns.x[at]!, kind: event.kind }] : [];
      }),
    [detail.events, line, x],
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
          <b class="bad">×</b> {plural(skipped, "step")} not finite, skipped
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

function Layers({ run, width }: { run: RunItem; width: number }) {
  const { branch, x, x0, x1, scale } = view.value;
  const zoom = x === "step" ? ([x0, x1] as const) : ([null, null] as const);
  const columns = Math.min(600, roundPixels(width) / 2);
  const [round, setRound] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => !document.hidden && setRound((before) => before + 1), 5000);
    return () => clearInterval(timer);
  }, []);
  const moving = run.status === "running" ? round : 0;
  const key = JSON.stringify([run.name, branch, zoom, columns, moving]);
  const { value, error } = useFetched(key, (signal) =>
    api.heatmap(run.name, branch, zoom[0], zoom[1], columns, signal),
  );
  return (
    <section class="panel" aria-label="S by scale group">
      <div class="panel-head">
        <h2>S by scale group</h2>
        <span class="says">
          {plural(run.groups, "group")}, largest in each column{x === "step" ? "" : "; by step, all of them"}
        </span>
      </div>
      {value && (
        <Heatmap data={value} groups={run.groups} chosen={scale} onChoose={(group) => show({ scale: group })} />
      )}
      {error && <p class="bad pad">{error.message}</p>}
    </section>
  );
}

function Small({ series, run, detail }: { series: Series; run: RunItem; detail: RunDetail }) {
  const shown = view.value;
  const [width, setWidth] = useState(500);
  const cursor = useSignal<number | null>(null);
  const names = useMemo(() => [run.name], [run.name]);
  const { lines, error } = useSeries(names, askOf(series, width));
  const line = lines.get(run.name);
  const signed = SERIES[series].signed;
  const y = shown.y === "linear" ? "linear" : signed ? "asinh" : "log";
  const marks = useMarks(detail, line, shown.x);
  const missing = line?.missing || line?.columns.max.every((value) => value === null);
  const entry = { id: series, label: SERIES[series].title, ink: ink(0), columns: line?.columns ?? null };
  return (
    <figure class="small">
      <figcaption>
        <b>{SERIES[series].title}</b> <span>{SERIES[series].says}</span>
        <SmallValue entry={entry} cursor={cursor} />
      </figcaption>
      <Chart
        series={series}
        curves={
          line
            ? [
                {
                  id: series,
                  label: series,
                  ink: ink(0),
                  columns: line.columns,
                  spread: run.groups > 1 && shown.scale === null,
                },
              ]
            : []
        }
        marks={marks}
        x={shown.x}
        y={y}
        smoothing={shown.smooth}
        x0={shown.x0}
        x1={shown.x1}
        height={150}
        sync="run"
        cursor={cursor}
        onZoom={(x0, x1) => show(zoomed(shown.x, x0, x1), "push")}
        onReset={resetZoom}
        onWidth={setWidth}
      />
      {missing && (
        <p class="chart-note">
          {series === "base_lr" || series === "effective_lr" ? "The trainer sends no BASE lr." : "No values."}
        </p>
      )}
      {error && <p class="chart-note bad">{error}</p>}
    </figure>
  );
}

function SmallValue({
  entry,
  cursor,
}: {
  entry: Parameters<typeof Legend>[0]["entries"][number];
  cursor: MainProps["cursor"];
}) {
  const at = cursor.value;
  const columns = entry.columns;
  const place = columns && at !== null ? columns.x.findIndex((x) => x >= at) : -1;
  const value = columns ? (place >= 0 ? columns.end[place] : columns.end.at(-1)) : null;
  return <output title={at === null ? "last value" : cursorLabel(view.value.x, at)}>{number(value, 3)}</output>;
}

function Resume({ detail }: { detail: RunDetail }) {
  return (
    <section class="panel resume">
      <div class="panel-head">
        <h2>Resume</h2>
        {detail.resume && <CopyButton text={detail.resume} />}
      </div>
      {detail.resume ? (
        <pre>{detail.resume}</pre>
      ) : (
        <p class="pad">
          How this run was started is not known. Start it again with the same run name, and with its last checkpoint: it
          goes on at that step.
        </p>
      )}
    </section>
  );
}

function Events({ events, run }: { events: readonly RunEvent[]; run: RunItem }) {
  const latestFirst = [...events].reverse();
  return (
    <section class="panel events">
      <div class="panel-head">
        <h2>Events</h2>
        <span class="says">{count(events.length)}</span>
      </div>
      <ol>
        {latestFirst.map((event, i) => (
          <li key={`${event.time} ${i}`}>
            <i class="dot" style={{ background: `var(${eventColour(event.kind)})` }} />
            <div>
              <button type="button" class="link" onClick={() => lookAt(run, event.step)} title="Zoom to these steps">
                {words(event.kind)} <span>at step {count(event.step)}</span>
              </button>
              <time dateTime={new Date(event.time).toISOString()}>{moment(event.time)}</time>
              {event.message && <p>{event.message}</p>}
            </div>
          </li>
        ))}
        {events.length === 0 && <li class="pad">None are recorded: this run is from an older version of the store.</li>}
      </ol>
    </section>
  );
}

function Branches({ detail, branch }: { detail: RunDetail; branch: number }) {
  return (
    <section class="panel branches">
      <div class="panel-head">
        <h2>Branches</h2>
        <span class="says">steps given up at a rewind stay</span>
      </div>
      <ul>
        {detail.branches.map((one) => (
          <li key={one.branch}>
            <button
              type="button"
              class={one.branch === branch ? "on" : ""}
              aria-pressed={one.branch === branch}
              onClick={() => show({ branch: one.branch })}
            >
              <b>{one.branch === 0 ? "the run" : `branch ${one.branch}`}</b>
              <span>
                steps {count(one.first_step)} to {count(one.last_step)}
              </span>
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}

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

/** The chart of several runs with its controls and its legend. */

import { useSignal } from "@preact/signals";
import { useMemo, useRef, useState } from "preact/hooks";
import type uPlot from "uplot";
import { Chart } from "../charts/Chart";
import type { Band, Curve } from "../charts/paint";
import { assign, type Ink, ink } from "../charts/palette";
import { type BandAnswer, useBands } from "../data/bands";
import { runs } from "../data/live";
import { useSeries } from "../data/series";
import { SERIES, type Series, type SeriesAsk, type SeriesRun, type XAxis } from "../data/types";
import { plural } from "../format";
import { savePng, saveRun } from "../parts/download";
import { Icon } from "../parts/icons";
import { type Entry, Legend } from "../parts/Legend";
import { Menu } from "../parts/Menu";
import { runAddress, show, view, type YAxis, yAxis } from "../view";
import { compare, resetZoom, toggleSelected } from "./actions";

/** A color for each name (or group value), which it keeps while it is shown. */
export function useInks(names: readonly string[]): ReadonlyMap<string, Ink> {
  const slots = useRef<Map<string, number>>(new Map());
  return useMemo(() => {
    slots.current = assign(names, slots.current);
    return new Map(names.map((name) => [name, ink(slots.current.get(name) ?? 0)]));
  }, [names.join(",")]);
}

/** Widths are rounded to this many pixels, so that resizing a window causes few requests. */
const GRAIN = 100;
export const roundPixels = (pixels: number): number =>
  Math.min(4000, Math.max(GRAIN, Math.ceil(pixels / GRAIN) * GRAIN));

export interface Groups {
  readonly key: string;
  readonly members: readonly { readonly label: string; readonly runs: readonly string[] }[];
  readonly inks: ReadonlyMap<string, Ink>;
}

interface Props {
  readonly names: readonly string[];
  readonly inks: ReadonlyMap<string, Ink>;
  /** Whether the runs were selected by hand, so that they can be removed. */
  readonly chosen: boolean;
  readonly groups: Groups | null;
  readonly height: number;
  /** A line above the legend. */
  readonly says: string;
}

export function ChartPanel({ names, inks, chosen, groups, height, says }: Props) {
  const shown = view.value;
  const [width, setWidth] = useState(1000);
  const cursor = useSignal<number | null>(null);
  const [looked, setLooked] = useState<string | null>(null);
  const plot = useRef<uPlot | null>(null);
  const y = yAxis(shown);
  const asBands = groups !== null && shown.bands;
  const ask: SeriesAsk = {
    series: shown.series,
    group: null,
    branch: 0,
    x: shown.x,
    x0: shown.x0,
    x1: shown.x1,
    columns: roundPixels(width),
  };
  const lines = useSeries(asBands ? [] : names, asBands ? null : ask);
  const answer = useBands(asBands ? groups.members : null, ask);
  const curves = asBands ? [] : toCurves(names, lines.lines, inks);
  const bands = asBands ? toBands(answer, groups) : [];
  const entries = asBands ? bandEntries(answer, groups) : entriesOf(names, lines.lines, inks);
  const title = `${SERIES[shown.series].title} over ${X_TITLES[shown.x]}`;
  const loading = asBands ? answer.loading : lines.loading;
  const error = asBands ? answer.error : lines.error;

  return (
    <section class="panel chart-panel" aria-label="Chart">
      <div class="panel-head">
        <Controls grouped={groups !== null} y={y} />
        <div class="panel-tools">
          {(shown.x0 !== null || shown.x1 !== null) && (
            <button type="button" class="button" onClick={resetZoom} title="Back to all steps (0, or double-click)">
              Reset zoom
            </button>
          )}
          {chosen && names.length >= 2 && (
            <button type="button" class="button" onClick={() => compare(names.slice(0, 6))}>
              Compare {Math.min(names.length, 6)}
            </button>
          )}
          <SaveMenu plot={plot} title={title} entries={entries} names={asBands ? [] : names} />
        </div>
      </div>
      <div class="chart-body" aria-busy={loading}>
        <div class="chart-box">
          <Chart
            series={shown.series}
            curves={curves}
            bands={bands}
            x={shown.x}
            y={y}
            smoothing={shown.smooth}
            x0={shown.x0}
            x1={shown.x1}
            height={height}
            highlight={looked}
            cursor={cursor}
            handle={plot}
            onZoom={(x0, x1) => show(zoomed(shown.x, x0, x1), "push")}
            onReset={resetZoom}
            onWidth={setWidth}
          />
          {names.length === 0 && !asBands && (
            <p class="chart-note">No run to show. Select one in the table with x, or clear the search.</p>
          )}
          {error && <p class="chart-note bad">{error}</p>}
          <p class="grain">
            {asBands ? "median, with a band from the 10th to the 90th percentile" : grain(curves, lines.lines, y)}
          </p>
        </div>
        <aside class="legend-box">
          <p class="legend-says">{asBands ? `by ${groups.key}` : says}</p>
          <Legend
            entries={entries}
            cursor={cursor}
            x={shown.x}
            onLook={setLooked}
            onRemove={chosen && !asBands ? toggleSelected : undefined}
          />
        </aside>
      </div>
    </section>
  );
}

export const X_TITLES: Record<XAxis, string> = { step: "step", relative: "time since the start", time: "time of day" };

/** Rounds a zoom: it shows every step that it touches. */
export const zoomed = (x: XAxis, x0: number, x1: number): { x0: number; x1: number } =>
  x === "step"
    ? { x0: Math.max(1, Math.floor(x0)), x1: Math.max(2, Math.ceil(x1)) }
    : x === "time"
      ? { x0: Math.floor(x0), x1: Math.ceil(x1) }
      : { x0: Number(x0.toPrecision(8)), x1: Number(x1.toPrecision(8)) };

export function toCurves(
  names: readonly string[],
  lines: ReadonlyMap<string, SeriesRun>,
  inks: ReadonlyMap<string, Ink>,
): Curve[] {
  return names.flatMap((name) => {
    const line = lines.get(name);
    const its = inks.get(name);
    return line && its && !line.missing
      ? [{ id: name, label: labelOf(name), ink: its, columns: line.columns, spread: hasGroups(name) }]
      : [];
  });
}

const hasGroups = (name: string): boolean => (runs.value.get(name)?.groups ?? 1) > 1;

const labelOf = (name: string): string => runs.value.get(name)?.run ?? name;

export function entriesOf(
  names: readonly string[],
  lines: ReadonlyMap<string, SeriesRun>,
  inks: ReadonlyMap<string, Ink>,
): Entry[] {
  return names.map((name) => {
    const line = lines.get(name);
    const entry = {
      id: name,
      label: labelOf(name),
      href: runAddress(name),
      ink: inks.get(name) ?? ink(0),
      columns: line?.columns ?? null,
    };
    return line?.missing ? { ...entry, note: "not sent" } : entry;
  });
}

const toBands = (answer: BandAnswer, groups: Groups): Band[] =>
  answer.bands.map((band) => ({
    id: band.label,
    label: band.label,
    ink: groups.inks.get(band.label) ?? ink(0),
    x: band.x,
    q: band.q,
  }));

const bandEntries = (answer: BandAnswer, groups: Groups): Entry[] =>
  groups.members.map(({ label, runs: members }) => {
    const band = answer.bands.find((one) => one.label === label);
    const median = band?.q[1] ?? [];
    const x = band?.x ?? [];
    const columns = { x, first: x, last: x, min: median, max: median, end: median, non_finite: [], held: [] };
    return {
      id: label,
      label: `${label} (${members.length})`,
      ink: groups.inks.get(label) ?? ink(0),
      columns: band ? columns : null,
    };
  });

/** What a column on the screen shows, and what the axis can't show. */
export function grain(curves: readonly Curve[], lines: ReadonlyMap<string, SeriesRun>, y: YAxis): string {
  let widest = 1;
  let hidden = 0;
  for (const { columns } of curves) {
    for (let i = 0; i < columns.x.length; i += 1) {
      widest = Math.max(widest, columns.last[i]! - columns.first[i]! + 1);
      if (y === "log" && (columns.min[i] ?? 1) <= 0) hidden += 1;
    }
  }
  if (curves.length === 0) return "";
  const spread = curves.some((curve) => curve.spread)
    ? " · bands reach from the smallest scale group to the largest"
    : "";
  const exact = curves.every((curve) => lines.get(curve.id)?.exact ?? widest === 1);
  const what = exact ? "every step" : `min, max and last of up to ${plural(widest, "step")} per column`;
  const below = hidden ? ` · ▾ ${plural(hidden, "column")} with values ≤ 0, which a log axis can't show` : "";
  return what + spread + below;
}

function SaveMenu({
  plot,
  title,
  entries,
  names,
}: {
  plot: { current: uPlot | null };
  title: string;
  entries: readonly Entry[];
  names: readonly string[];
}) {
  const all = names.slice(0, 20);
  return (
    <Menu label={<Icon name="down" />} title="Download" class="right">
      <button type="button" onClick={() => plot.current && savePng(plot.current, title, entries)}>
        This chart as PNG
      </button>
      {(["csv", "json"] as const).map((format) => (
        <button
          key={format}
          type="button"
          disabled={all.length === 0}
          onClick={() => all.forEach((name) => void saveRun(name, format))}
        >
          Every step of {plural(all.length, "run")} as {format.toUpperCase()}
        </button>
      ))}
    </Menu>
  );
}

function Controls({ grouped, y }: { grouped: boolean; y: YAxis }) {
  const shown = view.value;
  return (
    <div class="controls">
      <label>
        <span class="sr">Series</span>
        <select
          class="series"
          value={shown.series}
          onChange={(event) => show({ series: event.currentTarget.value as Series, y: null })}
        >
          {Object.entries(SERIES).map(([key, { title }]) => (
            <option key={key} value={key}>
              {title}
            </option>
          ))}
        </select>
      </label>
      <span class="says">{SERIES[shown.series].says}</span>
      <AxisControls y={y} />
      {grouped && (
        <label class="tick">
          <input
            type="checkbox"
            checked={shown.bands}
            onChange={(event) => show({ bands: event.currentTarget.checked })}
          />
          bands
        </label>
      )}
    </div>
  );
}

export function AxisControls({ y }: { y: YAxis }) {
  const shown = view.value;
  return (
    <>
      <Segments
        name="x"
        title="Horizontal axis"
        value={shown.x}
        all={{ step: "step", relative: "time", time: "clock" }}
        onChange={(x) => show({ x, x0: null, x1: null })}
      />
      <Segments
        name="y"
        title="Vertical axis"
        value={y}
        all={{ log: "log", linear: "lin", asinh: "±log" }}
        onChange={(next) => show({ y: next })}
      />
      <label class="slider" title="Exponential smoothing; the raw curve stays visible">
        smooth
        <input
          type="range"
          min="0"
          max="0.98"
          step="0.02"
          value={shown.smooth}
          onInput={(event) => show({ smooth: Number(event.currentTarget.value) })}
        />
        <output>{shown.smooth ? shown.smooth.toFixed(2) : "off"}</output>
      </label>
    </>
  );
}

interface SegmentsProps<T extends string> {
  readonly name: string;
  readonly title: string;
  readonly value: T;
  readonly all: Readonly<Record<T, string>>;
  readonly onChange: (value: T) => void;
}

export function Segments<T extends string>({ name, title, value, all, onChange }: SegmentsProps<T>) {
  return (
    <fieldset class="segments" title={title}>
      <legend class="sr">{title}</legend>
      {(Object.entries(all) as [T, string][]).map(([key, words]) => (
        <label key={key} class={key === value ? "on" : ""}>
          <input type="radio" name={name} value={key} checked={key === value} onChange={() => onChange(key)} />
          {words}
        </label>
      ))}
    </fieldset>
  );
}

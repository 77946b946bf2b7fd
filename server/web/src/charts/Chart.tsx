/** One chart: uPlot draws axes, cursor and zoom; we draw the curves, with their extremes. */

import type { Signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { SERIES, type Series, type XAxis } from "../data/types";
import { compact, moment, span, tick } from "../format";
import { colour, dark } from "../theme";
import type { YAxis } from "../view";
import { extremes, type Projection } from "./draw";
import { type Band, type Curve, type Mark, paintBand, paintCurve, paintMarks, paintRug } from "./paint";
import { asinhThreshold, asinhTicks, evenTicks, fit, logTicks, type Range } from "./scale";

export interface ChartProps {
  readonly series: Series;
  readonly curves: readonly Curve[];
  readonly bands?: readonly Band[];
  readonly marks?: readonly Mark[];
  readonly x: XAxis;
  readonly y: YAxis;
  readonly smoothing: number;
  readonly x0: number | null;
  readonly x1: number | null;
  readonly height: number;
  /** The curve or band under the pointer; the others fade. */
  readonly highlight?: string | null;
  /** Charts with the same key share the cursor. */
  readonly sync?: string;
  /** The cursor's x, for legends; null away from the chart. */
  readonly cursor?: Signal<number | null>;
  readonly handle?: { current: uPlot | null };
  readonly onZoom: (x0: number, x1: number) => void;
  readonly onReset: () => void;
  readonly onWidth?: (pixels: number) => void;
}

interface Drawn extends ChartProps {
  readonly range: Range;
  readonly reach: Range;
  readonly threshold: number;
}

export function Chart(props: ChartProps) {
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const drawn = measure(props);
  const latest = useRef(drawn);
  const isDark = dark.value;

  useLayoutEffect(() => {
    const element = host.current!;
    const made = new uPlot(options(latest, element.clientWidth || 600), dummy(latest.current), element);
    plot.current = made;
    if (props.handle) props.handle.current = made;
    const watch = new ResizeObserver(() => {
      if (element.clientWidth > 0) made.setSize({ width: element.clientWidth, height: latest.current.height });
      props.onWidth?.(Math.round(made.bbox.width / devicePixelRatio));
    });
    watch.observe(element);
    return () => {
      watch.disconnect();
      made.destroy();
      plot.current = null;
      if (props.handle) props.handle.current = null;
    };
  }, [props.x, props.y, isDark, props.sync, props.height]);

  useEffect(() => {
    latest.current = drawn;
    plot.current?.setData(dummy(latest.current), true);
  });

  const says = describe(props);
  return (
    <div
      ref={host}
      class="chart"
      role="img"
      aria-label={says}
      data-series={props.series}
      data-columns={props.curves.reduce((sum, curve) => sum + curve.columns.x.length, 0)}
      data-x0={drawn.reach.low}
      data-x1={drawn.reach.high}
    />
  );
}

function describe(props: ChartProps): string {
  const what = props.bands?.length ? `${props.bands.length} groups` : `${props.curves.length} runs`;
  return `${SERIES[props.series].title} of ${what} over ${props.x === "step" ? "steps" : "time"}`;
}

function measure(props: ChartProps): Drawn {
  let low = props.x0 ?? Number.POSITIVE_INFINITY;
  let high = props.x1 ?? Number.NEGATIVE_INFINITY;
  const xs = props.bands?.length ? props.bands.map((band) => band.x) : props.curves.map((curve) => curve.columns.x);
  for (const x of xs) {
    if (x.length === 0) continue;
    if (props.x0 === null) low = Math.min(low, x[0]!);
    if (props.x1 === null) high = Math.max(high, x.at(-1)!);
  }
  if (!(low <= high)) [low, high] = [props.x0 ?? 0, Math.max(props.x1 ?? 1, (props.x0 ?? 0) + 1)];
  if (low === high) high = low + 1;
  const values: number[] = [];
  if (props.bands?.length) {
    for (const band of props.bands)
      for (const q of band.q) for (const value of q) if (value !== null) values.push(value);
  } else for (const curve of props.curves) for (const value of extremes(curve.columns, low, high)) values.push(value);
  return {
    ...props,
    reach: { low, high },
    range: fit(values, props.y),
    threshold: props.y === "asinh" ? asinhThreshold(values) : 1,
  };
}

/** uPlot doesn't draw this data; it only fits the scales to it. */
const dummy = (drawn: Drawn): uPlot.AlignedData => [
  [drawn.reach.low, drawn.reach.high],
  [drawn.range.low, drawn.range.high],
];

const DISTRIBUTION = { linear: 1, log: 3, asinh: 4 } as const;

function options(latest: { current: Drawn }, width: number): uPlot.Options {
  const { x, y, sync, height } = latest.current;
  const axis = (): Partial<uPlot.Axis> => ({
    stroke: colour("--ink-soft"),
    font: "11px Inter, ui-sans-serif, system-ui, sans-serif",
    grid: { stroke: colour("--grid"), width: 1 },
    ticks: { show: false },
    gap: 6,
  });
  const ticks = (u: uPlot): number[] => {
    const { min = 0, max = 1 } = u.scales.y!;
    const most = Math.max(2, Math.floor(u.bbox.height / devicePixelRatio / 34));
    if (y === "log") return logTicks(min!, max!, most);
    if (y === "asinh") return asinhTicks(min!, max!, latest.current.threshold, most);
    return evenTicks(min!, max!, most);
  };
  return {
    width,
    height,
    padding: [8, 10, 0, 0],
    legend: { show: false },
    scales: {
      x: { time: x === "time", range: () => [latest.current.reach.low, latest.current.reach.high] },
      y: {
        distr: DISTRIBUTION[y],
        asinh: latest.current.threshold,
        range: (u) => {
          u.scales.y!.asinh = latest.current.threshold;
          return [latest.current.range.low, latest.current.range.high];
        },
      },
    },
    ms: 1,
    series: [{}, { show: true, paths: () => null, points: { show: false } }],
    axes: [
      { ...axis(), size: 28, ...xTicks(x) },
      {
        ...axis(),
        size: 58,
        splits: ticks,
        filter: (_u, all) => all,
        values: (_u, all) => all.map(tick),
      },
    ],
    cursor: {
      points: { show: false },
      drag: { x: true, y: false, setScale: false, dist: 4 },
      ...(sync ? { sync: { key: sync, scales: ["x", null] } } : {}),
      bind: {
        dblclick: () => () => {
          latest.current.onReset();
          return null;
        },
      },
    },
    hooks: {
      draw: [(u) => draw(u, latest.current)],
      setSelect: [
        (u) => {
          const { left, width: wide } = u.select;
          if (wide < 4) return;
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          if (u.cursor.event?.type === "dblclick") return;
          latest.current.onZoom(u.posToVal(left, "x"), u.posToVal(left + wide, "x"));
        },
      ],
      setCursor: [
        (u) => {
          const { cursor } = latest.current;
          if (!cursor) return;
          const { left } = u.cursor;
          cursor.value = left === undefined || left < 0 ? null : u.posToVal(left, "x");
        },
      ],
    },
  };
}

function xTicks(x: XAxis): Partial<uPlot.Axis> {
  if (x === "step") {
    return {
      space: 64,
      incrs: [1, 2, 5].flatMap((m) => Array.from({ length: 12 }, (_, e) => m * 10 ** e)).sort((a, b) => a - b),
      values: (_u, all) => all.map((value) => compact(value)),
    };
  }
  if (x === "relative") {
    const units = [
      1,
      2,
      5,
      10,
      30,
      60,
      120,
      300,
      600,
      1800,
      3600,
      7200,
      4 * 3600,
      12 * 3600,
      86400,
      2 * 86400,
      7 * 86400,
    ];
    return { space: 80, incrs: units, values: (_u, all) => all.map((value) => (value === 0 ? "0" : exactSpan(value))) };
  }
  return { space: 110, values: (_u, all) => all.map((value) => moment(value)) };
}

/** 90 → 1:30 min: ticks must not round. */
function exactSpan(seconds: number): string {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600)
    return seconds % 60
      ? `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")} min`
      : `${seconds / 60} min`;
  if (seconds < 86400) return `${Number((seconds / 3600).toFixed(2))} h`;
  return `${Number((seconds / 86400).toFixed(2))} d`;
}

/** Maps values to uPlot's canvas: one multiplication per value instead of a call into uPlot. */
function projection(u: uPlot, drawn: Drawn): Projection {
  const { left, top, width, height } = u.bbox;
  const { low, high } = drawn.reach;
  const forward =
    drawn.y === "log"
      ? Math.log10
      : drawn.y === "asinh"
        ? (v: number) => Math.asinh(v / drawn.threshold)
        : (v: number) => v;
  const bottom = forward(drawn.range.low);
  const tall = height / (forward(drawn.range.high) - bottom);
  const wide = width / (high - low);
  return {
    x: (value) => left + (value - low) * wide,
    y: (value) => top + height - (forward(value) - bottom) * tall,
    log: drawn.y === "log",
    floor: top + height,
  };
}

function draw(u: uPlot, drawn: Drawn): void {
  const context = u.ctx;
  const ratio = devicePixelRatio;
  const { left, top, width, height } = u.bbox;
  const to = projection(u, drawn);
  const faded = (id: string): number => (drawn.highlight && drawn.highlight !== id ? 0.15 : 1);
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  if (drawn.marks) paintMarks(context, drawn.marks, u.bbox, to, ratio);
  if (drawn.bands?.length)
    for (const band of drawn.bands) paintBand(context, band, to, ratio, drawn.bands.length, faded(band.id));
  else {
    for (const curve of drawn.curves) {
      const shape = paintCurve(context, curve, to, drawn.smoothing, ratio, drawn.curves.length, faded(curve.id));
      paintRug(
        context,
        shape,
        u.bbox,
        ratio,
        drawn.curves.length > 1 && !drawn.marks ? curve.ink.property : "--event-bad",
      );
    }
  }
  context.restore();
}

/** A label for the cursor's x: "step 12,345", "2 h", "14:03:12". */
export function cursorLabel(x: XAxis, value: number): string {
  if (x === "step") return `step ${Math.round(value).toLocaleString("en")}`;
  return x === "time" ? moment(value) : span(value * 1000);
}

/** Paints curves, bands and marks on a canvas; all drawing is here. */

import type { Columns } from "../data/types";
import { colour } from "../theme";
import { type Geometry, geometry, type Projection, smooth } from "./draw";
import type { Ink } from "./palette";

export interface Curve {
  readonly id: string;
  readonly label: string;
  readonly ink: Ink;
  readonly columns: Columns;
  /** Its extremes are those over the scale groups: a band is drawn from the smallest to the largest. */
  readonly spread?: boolean;
  /** Drawn thin and pale, as an abandoned branch. */
  readonly pale?: boolean;
}

export interface Band {
  readonly id: string;
  readonly label: string;
  readonly ink: Ink;
  readonly x: readonly number[];
  /** Low quantile, median and high quantile, with one value per column each. */
  readonly q: readonly (readonly (number | null)[])[];
}

export interface Mark {
  readonly x: number;
  readonly kind: string;
}

export interface Box {
  readonly left: number;
  readonly top: number;
  readonly width: number;
  readonly height: number;
}

/** Draws a curve on the canvas; returns what could not be drawn. */
export function paintCurve(
  context: CanvasRenderingContext2D,
  curve: Curve,
  to: Projection,
  smoothing: number,
  ratio: number,
  curves: number,
  opacity: number,
): Geometry {
  const smoothed = smoothing > 0 ? smooth(curve.columns, smoothing, to.log) : null;
  const shape = geometry(curve.columns, to, smoothed);
  context.strokeStyle = colour(curve.ink.property);
  context.fillStyle = context.strokeStyle;
  context.lineJoin = "round";
  const strength = (curve.pale ? 0.5 : 1) * opacity;

  if (smoothed) {
    context.globalAlpha = 0.22 * strength; // the raw curve, as a ghost
    strokeLine(context, geometry(curve.columns, to).line, ratio, []);
  }
  context.globalAlpha = ((smoothed ? 0.2 : 0.55) * strength) / Math.sqrt(Math.max(1, curves / 2));
  if (curve.spread) paintSpread(context, shape.bars, ratio);
  else strokeBars(context, shape.bars, ratio);
  context.globalAlpha = strength;
  strokeLine(
    context,
    shape.line,
    (curve.pale ? 1 : 1.6) * ratio,
    curve.pale ? [2 * ratio, 3 * ratio] : curve.ink.dash.map((d) => d * ratio),
  );
  context.globalAlpha = 0.8 * strength;
  for (const x of shape.below) triangle(context, x, to.floor, 3.5 * ratio);
  context.globalAlpha = 1;
  return shape;
}

function strokeLine(
  context: CanvasRenderingContext2D,
  line: Float64Array,
  width: number,
  dash: readonly number[],
): void {
  context.lineWidth = width;
  context.setLineDash([...dash]);
  context.beginPath();
  let down = false;
  for (let i = 0; i < line.length; i += 2) {
    const y = line[i + 1]!;
    if (Number.isNaN(y)) {
      down = false;
      continue;
    }
    if (down) context.lineTo(line[i]!, y);
    else context.moveTo(line[i]!, y);
    const alone = !down && (i + 3 >= line.length || Number.isNaN(line[i + 3]!));
    if (alone) context.lineTo(line[i]! + width, y);
    down = true;
  }
  context.stroke();
  context.setLineDash([]);
}

/** One bar per column, from max to min; a bar shorter than a pixel is covered by the line. */
function strokeBars(context: CanvasRenderingContext2D, bars: Float64Array, ratio: number): void {
  context.lineWidth = Math.max(1, ratio);
  context.beginPath();
  for (let i = 0; i < bars.length; i += 3) {
    const top = bars[i + 1]!;
    const bottom = bars[i + 2]!;
    if (Number.isNaN(top) || Number.isNaN(bottom) || bottom - top < 1) continue;
    context.moveTo(bars[i]!, top);
    context.lineTo(bars[i]!, bottom);
  }
  context.stroke();
}

/** A band from max to min, with its edges. */
function paintSpread(context: CanvasRenderingContext2D, bars: Float64Array, ratio: number): void {
  const alpha = context.globalAlpha;
  const edge = (of: 1 | 2): Float64Array => {
    const line = new Float64Array((bars.length / 3) * 2);
    for (let i = 0; i < bars.length / 3; i += 1) {
      line[2 * i] = bars[3 * i]!;
      line[2 * i + 1] = bars[3 * i + of]!;
    }
    return line;
  };
  const [top, bottom] = [edge(1), edge(2)];
  context.beginPath();
  for (let i = 0; i < top.length; i += 2) if (!Number.isNaN(top[i + 1]!)) context.lineTo(top[i]!, top[i + 1]!);
  for (let i = bottom.length - 2; i >= 0; i -= 2) {
    if (!Number.isNaN(bottom[i + 1]!)) context.lineTo(bottom[i]!, bottom[i + 1]!);
  }
  context.globalAlpha = alpha * 0.25;
  context.fill();
  context.globalAlpha = alpha * 0.8;
  strokeLine(context, top, 0.8 * ratio, []);
  strokeLine(context, bottom, 0.8 * ratio, []);
}

function triangle(context: CanvasRenderingContext2D, x: number, y: number, size: number): void {
  context.beginPath();
  context.moveTo(x - size, y - 1.6 * size);
  context.lineTo(x + size, y - 1.6 * size);
  context.lineTo(x, y);
  context.fill();
}

export function paintBand(
  context: CanvasRenderingContext2D,
  band: Band,
  to: Projection,
  ratio: number,
  bands: number,
  opacity: number,
): void {
  const [low = [], middle = [], high = []] = band.q;
  const place = (value: number | null | undefined): number | null =>
    value === null || value === undefined || Number.isNaN(value) ? null : to.log && value <= 0 ? to.floor : to.y(value);
  context.fillStyle = colour(band.ink.property);
  context.strokeStyle = context.fillStyle;
  context.globalAlpha = (opacity * 0.24) / Math.max(1, bands) ** 0.65;
  context.beginPath();
  const back: [number, number][] = [];
  for (let i = 0; i < band.x.length; i += 1) {
    const top = place(high[i]);
    const bottom = place(low[i]);
    if (top === null || bottom === null) continue;
    const x = to.x(band.x[i]!);
    context.lineTo(x, top);
    back.push([x, bottom]);
  }
  for (const [x, y] of back.reverse()) context.lineTo(x, y);
  context.fill();
  context.globalAlpha = opacity;
  const line = new Float64Array(2 * band.x.length);
  band.x.forEach((x, i) => {
    line[2 * i] = to.x(x);
    line[2 * i + 1] = place(middle[i]) ?? Number.NaN;
  });
  strokeLine(
    context,
    line,
    1.8 * ratio,
    band.ink.dash.map((d) => d * ratio),
  );
}

/** Events as thin lines with a head; the list next to the chart explains them. */
export function paintMarks(
  context: CanvasRenderingContext2D,
  marks: readonly Mark[],
  box: Box,
  to: Projection,
  ratio: number,
): void {
  context.lineWidth = ratio;
  for (const mark of marks) {
    const x = Math.round(to.x(mark.x)) + 0.5;
    if (x < box.left || x > box.left + box.width) continue;
    const ink = colour(eventColour(mark.kind));
    context.strokeStyle = ink;
    context.fillStyle = ink;
    context.globalAlpha = 0.5;
    context.setLineDash([3 * ratio, 3 * ratio]);
    context.beginPath();
    context.moveTo(x, box.top + 8 * ratio);
    context.lineTo(x, box.top + box.height);
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
    context.beginPath();
    context.arc(x, box.top + 5 * ratio, 3.5 * ratio, 0, 7);
    context.fill();
  }
}

export function eventColour(kind: string): string {
  if (kind.startsWith("rewound") || kind === "forked") return "--event-rewind";
  if (kind === "outage" || kind === "fenced" || kind === "adopted") return "--event-bad";
  if (kind === "closed") return "--event-end";
  return "--event-session";
}

/** Non-finite (crosses) and held (dashes) steps, along the upper edge; in the color of their run if there are several. */
export function paintRug(
  context: CanvasRenderingContext2D,
  shape: Geometry,
  box: Box,
  ratio: number,
  ink: string,
): void {
  const y = box.top + 5 * ratio;
  const size = 3 * ratio;
  context.lineWidth = 1.5 * ratio;
  context.strokeStyle = colour("--event-held");
  context.beginPath();
  for (const x of shape.held) {
    context.moveTo(x, y + 2 * size);
    context.lineTo(x, y + 4 * size);
  }
  context.stroke();
  context.strokeStyle = colour(ink);
  context.beginPath();
  for (const x of shape.nonFinite) {
    context.moveTo(x - size, y - size);
    context.lineTo(x + size, y + size);
    context.moveTo(x - size, y + size);
    context.lineTo(x + size, y - size);
  }
  context.stroke();
}

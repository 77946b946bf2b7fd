/**
 * What is drawn of a curve: geometry in pixels from columns. Pure, so that a test can hold it to the raw data.
 * Each column gives a bar from its min to its max at its x, and the line goes through the last values: no extreme is lost.
 */

import type { Columns } from "../data/types";

export interface Geometry {
  /** x, y of the line's corners; NaN where it is broken. */
  readonly line: Float64Array;
  /** x, y of the max and y of the min of each column; NaN if the column has no value that can be drawn. */
  readonly bars: Float64Array;
  /** x of columns that have a value ≤ 0 on a log axis: marked at the lower edge. */
  readonly below: number[];
  /** x of columns with steps that were not finite, and held. */
  readonly nonFinite: number[];
  readonly held: number[];
}

export interface Projection {
  readonly x: (value: number) => number;
  readonly y: (value: number) => number;
  /** A log axis can show only positive values. */
  readonly log: boolean;
  /** y of the lower edge. */
  readonly floor: number;
}

export function geometry(
  columns: Columns,
  to: Projection,
  smoothed: readonly (number | null)[] | null = null,
): Geometry {
  const n = columns.x.length;
  const line = new Float64Array(2 * n);
  const bars = new Float64Array(3 * n);
  const below: number[] = [];
  const nonFinite: number[] = [];
  const held: number[] = [];
  const place = (value: number | null | undefined): number =>
    value === null || value === undefined || Number.isNaN(value) || (to.log && value <= 0) ? Number.NaN : to.y(value);
  for (let i = 0; i < n; i += 1) {
    const x = to.x(columns.x[i]!);
    const min = columns.min[i] ?? null;
    const max = columns.max[i] ?? null;
    line[2 * i] = x;
    line[2 * i + 1] = place(smoothed ? smoothed[i] : columns.end[i]);
    const top = place(max);
    const hidden = to.log && min !== null && min <= 0;
    bars[3 * i] = x;
    bars[3 * i + 1] = top;
    bars[3 * i + 2] = hidden && !Number.isNaN(top) ? to.floor : place(min);
    if (hidden) below.push(x);
    if ((columns.non_finite[i] ?? 0) > 0) nonFinite.push(x);
    if ((columns.held[i] ?? 0) > 0) held.push(x);
  }
  return { line, bars, below, nonFinite, held };
}

/** Exponential smoothing of the last values, free of bias at the start; in the logarithm where the axis is one. */
export function smooth(columns: Columns, weight: number, log: boolean): (number | null)[] {
  let sum = 0;
  let norm = 0;
  return columns.end.map((value) => {
    if (value === null || Number.isNaN(value) || (log && value <= 0)) return norm > 0 && !log ? sum / norm : null;
    sum = weight * sum + (1 - weight) * (log ? Math.log(value) : value);
    norm = weight * norm + (1 - weight);
    return log ? Math.exp(sum / norm) : sum / norm;
  });
}

/** The column whose x is nearest to `at`; −1 if there is none. */
export function nearest(x: readonly number[], at: number): number {
  let low = 0;
  let high = x.length - 1;
  if (high < 0) return -1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle]! < at) low = middle + 1;
    else high = middle;
  }
  return low > 0 && at - x[low - 1]! < x[low]! - at ? low - 1 : low;
}

/** All min and max within [x0, x1]. */
export function* extremes(columns: Columns, x0: number, x1: number): Generator<number> {
  for (let i = 0; i < columns.x.length; i += 1) {
    const x = columns.x[i]!;
    if (x < x0 || x > x1) continue;
    const min = columns.min[i];
    const max = columns.max[i];
    if (min !== null && min !== undefined && Number.isFinite(min)) yield min;
    if (max !== null && max !== undefined && Number.isFinite(max)) yield max;
  }
}

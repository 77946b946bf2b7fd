/** Where a value is on an axis, and where its ticks are. Pure. */

import type { YAxis } from "../view";

export interface Range {
  readonly low: number;
  readonly high: number;
}

const EMPTY: Record<YAxis, Range> = {
  log: { low: 1e-8, high: 1 },
  linear: { low: 0, high: 1 },
  asinh: { low: -1, high: 1 },
};

/** A range that shows all extremes, with a margin; on a log axis only positive values count. */
export function fit(extremes: Iterable<number>, kind: YAxis): Range {
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  for (const value of extremes) {
    if (kind === "log" && value <= 0) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return EMPTY[kind];
  if (kind === "log") {
    const air = Math.max(0.05 * Math.log10(high / low), 0.15);
    return { low: 10 ** (Math.log10(low) - air), high: 10 ** (Math.log10(high) + air) };
  }
  const air = low === high ? Math.abs(low) * 0.1 || 1 : (high - low) * 0.06;
  return { low: low - air, high: high + air };
}

/** Below this size an asinh axis is linear; it is the scale of the smaller values. */
export function asinhThreshold(extremes: Iterable<number>): number {
  let largest = 0;
  const sizes: number[] = [];
  for (const value of extremes) {
    const size = Math.abs(value);
    if (size > 0 && Number.isFinite(size)) sizes.push(size);
    if (size > largest) largest = size;
  }
  if (sizes.length === 0) return 1;
  sizes.sort((a, b) => a - b);
  const low = sizes[Math.floor(sizes.length / 4)]!;
  return 10 ** Math.floor(Math.log10(Math.max(low, largest * 1e-6)));
}

/** Ticks of a log axis: decades, thinned where many; 1 2 5 where few; even steps within less than a decade. */
export function logTicks(low: number, high: number, most: number): number[] {
  const a = Math.log10(low);
  const b = Math.log10(high);
  const decades = Math.floor(b) - Math.ceil(a) + 1;
  if (decades >= 3) {
    const stride = Math.ceil(decades / most);
    return range(Math.ceil(a / stride) * stride, b, stride).map(power);
  }
  for (const steps of [[1, 2, 5], [1, 3], [1]]) {
    const fine = range(Math.floor(a), b, 1).flatMap((e) => steps.map((step) => Number(`${step}e${e}`)));
    const within = fine.filter((tick) => tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9));
    if (within.length >= 2 && within.length <= most + 1) return within;
  }
  return evenTicks(low, high, most);
}

/** 10^e, exactly as it is written. */
const power = (e: number): number => Number(`1e${e}`);

function range(from: number, to: number, stride: number): number[] {
  const found: number[] = [];
  for (let value = from; value <= to + 1e-9; value += stride) found.push(value);
  return found;
}

export function evenTicks(low: number, high: number, most: number): number[] {
  const rough = (high - low) / Math.max(1, most);
  if (!(rough > 0) || !Number.isFinite(rough)) return [low];
  const unit = 10 ** Math.floor(Math.log10(rough));
  const stride = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough)!;
  const found: number[] = [];
  for (let i = Math.ceil(low / stride - 1e-9); i * stride <= high + stride * 1e-9; i += 1) {
    found.push(Number((i * stride).toPrecision(12)));
  }
  return found;
}

/** Ticks of an asinh axis: 0 and powers of ten on either side, thinned. */
export function asinhTicks(low: number, high: number, threshold: number, most: number): number[] {
  const side = (bound: number): number[] => {
    if (bound <= threshold) return [];
    const first = Math.round(Math.log10(threshold)) + 1;
    const last = Math.floor(Math.log10(bound));
    const stride = Math.max(1, Math.ceil((last - first + 1) / Math.max(1, most / 2)));
    const found: number[] = [];
    for (let e = last; e >= first; e -= stride) found.unshift(power(e));
    return found;
  };
  const up = side(high);
  const down = side(-low);
  if (up.length + down.length < 2) return evenTicks(low, high, most);
  const zero = low <= 0 && high >= 0 ? [0] : [];
  return [...down.reverse().map((tick) => -tick), ...zero, ...up];
}

/** Numbers, spans and moments as people read them. Pure; no locale but thousands' commas. */

export const NONE = "–";

/** 3.2e-4, 0.012, 1.5, 1,200, 3.4e7: always `digits` significant ones, so that columns of them line up. */
export function number(value: number | null | undefined, digits = 2): string {
  if (value === null || value === undefined) return NONE;
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const rounded = Number(value.toPrecision(digits));
  const size = Math.abs(rounded);
  if (size < 0.01 || size >= 100_000) {
    return minus(rounded.toExponential(digits - 1).replace("e+", "e"));
  }
  if (size >= 1000) return minus(commas(Math.round(rounded)));
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  return minus(rounded.toFixed(decimals));
}

const minus = (text: string): string => (text.startsWith("-") ? `−${text.slice(1)}` : text);

const commas = (value: number): string => String(value).replace(/\B(?=(\d{3})+(?!\d))/g, ",");

/** 1,234,567 */
export const count = (value: number): string => commas(Math.round(value));

/** 12, 1.5k, 20k, 3M: for ticks. */
export function compact(value: number): string {
  const size = Math.abs(value);
  for (const [unit, letter] of [
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ] as const) {
    if (size >= unit) return minus(`${Number((value / unit).toPrecision(4))}${letter}`);
  }
  return minus(String(Number(value.toPrecision(6))));
}

/** 1e-8, 0.01, 2.5, 100, 1e4: as short as the value allows. */
export function tick(value: number): string {
  const size = Math.abs(value);
  const exact = Number(value.toPrecision(8));
  const plain = size === 0 || (size >= 0.001 && size < 10_000);
  return minus(plain ? String(exact) : exact.toExponential().replace("e+", "e"));
}

/** 8 ms, 12 s, 5 min, 3 h, 2 d */
export function span(milliseconds: number): string {
  const seconds = Math.max(0, milliseconds / 1000);
  if (seconds < 1) return `${Number((seconds * 1000).toPrecision(2))} ms`;
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

/** How long ago, without decimals that would flicker: "now", 12 s, 5 min. */
export const age = (milliseconds: number): string =>
  milliseconds < 2000 ? "now" : span(Math.round(milliseconds / 1000) * 1000);

const two = (value: number): string => String(value).padStart(2, "0");

/** 14:03:12 today, 2026-01-30 14:03 on other days; this machine's time zone. */
export function moment(time: number, now = Date.now()): string {
  const date = new Date(time);
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const clock = `${two(date.getHours())}:${two(date.getMinutes())}`;
  if (new Date(now).toDateString() === date.toDateString()) return `${clock}:${two(date.getSeconds())}`;
  return `${day} ${clock}`;
}

/** 1 run, 2 runs */
export const plural = (n: number, word: string): string => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

/** The whole view is in the address: `#/?q=…&sel=…`, `#/run/p:bert/seed0?…`, `#/compare?runs=…`. Parsing is pure. */

import { signal } from "@preact/signals";
import { toFull, toShort } from "./data/names";
import { SORTS, type Sort, type SortKey } from "./data/order";
import { SERIES, type Series, type XAxis } from "./data/types";

export type YAxis = "log" | "linear" | "asinh";

export interface View {
  readonly page: "overview" | "run" | "compare";
  /** The run of the page "run". */
  readonly run: string;
  /** The runs of the page "compare". */
  readonly runs: readonly string[];
  readonly query: string;
  readonly sort: Sort;
  readonly group: string;
  /** Values of `group` whose rows are collapsed. */
  readonly closed: readonly string[];
  readonly selected: readonly string[];
  readonly pinned: readonly string[];
  readonly bands: boolean;
  readonly series: Series;
  readonly x: XAxis;
  /** null: log for series that are positive by nature, asinh for series with a sign. */
  readonly y: YAxis | null;
  readonly smooth: number;
  readonly x0: number | null;
  readonly x1: number | null;
  /** The scale group on the run's page; null: the largest S. */
  readonly scale: number | null;
  readonly branch: number;
}

export const DEFAULT: View = {
  page: "overview",
  run: "",
  runs: [],
  query: "",
  sort: { key: "needs", down: false },
  group: "",
  closed: [],
  selected: [],
  pinned: [],
  bands: true,
  series: "S",
  x: "step",
  y: null,
  smooth: 0,
  x0: null,
  x1: null,
  scale: null,
  branch: 0,
};

const number = (text: string | null): number | null => {
  const value = text === null || text === "" ? Number.NaN : Number(text);
  return Number.isFinite(value) ? value : null;
};
const names = (text: string | null): string[] => (text ? text.split(",").filter(Boolean).map(toFull) : []);
const among = <T extends string>(text: string | null, all: readonly T[], otherwise: T): T =>
  all.includes(text as T) ? (text as T) : otherwise;

/** The view of an address. Parts that can't be read are ignored, so old addresses still work. */
export function parseView(hash: string): View {
  const [path = "", search = ""] = hash.replace(/^#?\/?/, "").split(/\?(.*)/s);
  const said = new URLSearchParams(search);
  const [sortKey, way] = (said.get("sort") ?? "").split(".");
  const y = said.get("y");
  const smooth = number(said.get("smooth")) ?? 0;
  return {
    page: path.startsWith("run/") ? "run" : path === "compare" ? "compare" : "overview",
    run: path.startsWith("run/") ? toFull(decode(path.slice(4))) : "",
    runs: names(said.get("runs")),
    query: said.get("q") ?? "",
    sort: { key: among<SortKey>(sortKey ?? null, SORTS, DEFAULT.sort.key), down: way === "down" },
    group: said.get("group") ?? "",
    closed: said.getAll("closed"),
    selected: names(said.get("sel")),
    pinned: names(said.get("pin")),
    bands: said.get("bands") !== "0",
    series: among(said.get("series"), Object.keys(SERIES) as Series[], "S"),
    x: among<XAxis>(said.get("x"), ["step", "relative", "time"], "step"),
    y: y === null ? null : among<YAxis>(y, ["log", "linear", "asinh"], "log"),
    smooth: Math.min(0.99, Math.max(0, smooth)),
    x0: number(said.get("x0")),
    x1: number(said.get("x1")),
    scale: number(said.get("scale")),
    branch: number(said.get("branch")) ?? 0,
  };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** The address of a view, without what is at its default. */
export function formatView(view: View): string {
  const path = view.page === "run" ? `/run/${encode(toShort(view.run))}` : view.page === "compare" ? "/compare" : "/";
  const said: [string, string][] = [];
  const say = (key: string, value: string | number | null, otherwise: string | number | null): void => {
    if (value !== otherwise && value !== null && value !== "") said.push([key, String(value)]);
  };
  const list = (all: readonly string[]): string => all.map(toShort).join(",");
  say("runs", list(view.runs), "");
  say("q", view.query, "");
  say("sort", `${view.sort.key}${view.sort.down ? ".down" : ""}`, "needs");
  say("group", view.group, "");
  for (const value of view.closed) say("closed", value, null);
  say("sel", list(view.selected), "");
  say("pin", list(view.pinned), "");
  say("bands", view.bands ? 1 : 0, 1);
  say("series", view.series, "S");
  say("x", view.x, "step");
  say("y", view.y, null);
  say("smooth", view.smooth, 0);
  say("x0", view.x0, null);
  say("x1", view.x1, null);
  say("scale", view.scale, null);
  say("branch", view.branch, 0);
  const search = said.map(([key, value]) => `${key}=${encode(value)}`).join("&");
  return `#${path}${search ? `?${search}` : ""}`;
}

/** Readable: only what would break the address is escaped. */
const encode = (text: string): string =>
  encodeURIComponent(text).replace(/%(2F|3A|2C|3D|3C|3E|7E|5B|5D|22)/g, (code) => decodeURIComponent(code));

export const view = signal<View>(DEFAULT);

/** Changes the view. `push` makes a stop for the Back button: for another page, and for a zoom. */
export function show(change: Partial<View>, how: "push" | "replace" = "replace"): void {
  const next = { ...view.value, ...change };
  const address = formatView(next);
  if (address === formatView(view.value)) return;
  if (how === "push") history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  view.value = next;
}

export const yAxis = (shown: View, series: Series = shown.series): YAxis =>
  shown.y ?? (SERIES[series].signed ? "asinh" : "log");

export function followAddress(): void {
  const read = (): void => {
    view.value = parseView(location.hash);
  };
  addEventListener("hashchange", read);
  addEventListener("popstate", read);
  read();
}

/** The address of a run's page, with the current axes and zoom. */
export const runAddress = (name: string): string =>
  formatView({ ...view.value, page: "run", run: name, x0: null, x1: null, scale: null, branch: 0, runs: [] });

export const compareAddress = (names: readonly string[]): string =>
  formatView({ ...view.value, page: "compare", run: "", runs: names, x0: null, x1: null });

export const overviewAddress = (): string =>
  formatView({ ...view.value, page: "overview", run: "", runs: [], x0: null, x1: null, scale: null, branch: 0 });

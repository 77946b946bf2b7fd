/** The types of /api/v1. Times are ms since 1970; `null` is "not known", or NaN in a series. */

export const STATUSES = ["running", "silent", "preempted", "failed", "finished"] as const;
export type Status = (typeof STATUSES)[number];

export interface Need {
  readonly kind: string;
  readonly message: string;
  readonly step: number | null;
}

export interface RunItem {
  readonly name: string;
  readonly project: string;
  readonly run: string;
  readonly status: Status;
  readonly status_message: string;
  readonly step: number;
  readonly S: number | null;
  readonly scale: readonly (number | null)[];
  readonly groups: number;
  readonly base_lr: number | null;
  readonly effective_lr: number | null;
  readonly labels: Readonly<Record<string, string>>;
  readonly create_time: number;
  readonly step_time: number | null;
  /** When the run was archived: it leaves the table then. */
  readonly archive_time: number | null;
  readonly interval: number | null;
  readonly sessions: number;
  readonly rewinds: number;
  readonly needs: readonly Need[];
}

export interface ServerInfo {
  readonly version: string;
  readonly started: number;
  readonly store: string;
  /** Why the page may be out of date, in words; "" if it is current. */
  readonly trouble?: string;
}

export interface Viewer {
  readonly id: string;
  readonly role: "read" | "write" | "admin";
  /** "" means all projects. */
  readonly project: string;
  /** Whether somebody signed in to this page, and so can sign out. */
  readonly signed_in: boolean;
}

export interface RunsReply {
  readonly server: ServerInfo;
  readonly now: number;
  readonly cursor: string;
  readonly runs: readonly RunItem[];
}

export interface RunsDelta {
  readonly now: number;
  readonly runs: readonly (Partial<RunItem> & { readonly name: string })[];
  readonly gone: readonly string[];
}

export const SERIES = {
  S: { title: "S", says: "the scale that multiplies Δ; the largest of the groups", signed: false },
  effective_lr: { title: "effective lr", says: "S · BASE's learning rate", signed: false },
  base_lr: { title: "BASE lr", says: "BASE's learning rate, from its schedule", signed: false },
  h: { title: "h", says: "the tuner's input at each step", signed: true },
  grad_norm: { title: "gradient norm", says: "of g, after your clipping", signed: false },
  param_norm: { title: "parameter norm", says: "of all parameters", signed: false },
  delta_dot_g: { title: "⟨Δ, g⟩", says: "negative where a step along Δ reduces the loss", signed: true },
  delta_dot_x: { title: "⟨Δ, x⟩", says: "positive where Δ and the parameters point the same way", signed: true },
} as const;
export type Series = keyof typeof SERIES;
export type XAxis = "step" | "relative" | "time";

/** Column i stands for the steps first[i] … last[i], whole; min and max are exact extremes over them, end is the last. */
export interface Columns {
  readonly x: readonly number[];
  readonly first: readonly number[];
  readonly last: readonly number[];
  readonly min: readonly (number | null)[];
  readonly max: readonly (number | null)[];
  readonly end: readonly (number | null)[];
  readonly non_finite: readonly number[];
  readonly held: readonly number[];
}

export interface SeriesRun {
  readonly name: string;
  readonly first_step: number;
  readonly last_step: number;
  readonly exact: boolean;
  readonly columns: Columns;
  readonly missing: boolean;
}

export interface SeriesAsk {
  readonly series: Series;
  readonly group: number | null;
  readonly branch: number;
  readonly x: XAxis;
  readonly x0: number | null;
  readonly x1: number | null;
  readonly columns: number;
}

export interface Spark {
  readonly x: readonly number[];
  readonly min: readonly (number | null)[];
  readonly max: readonly (number | null)[];
  readonly end: readonly (number | null)[];
}

export interface BandGroup {
  readonly label: string;
  readonly x: readonly number[];
  readonly q: readonly (readonly (number | null)[])[];
  readonly n: readonly number[];
}

export interface RunEvent {
  readonly time: number;
  readonly step: number;
  readonly kind: string;
  readonly message: string;
}

export interface Branch {
  readonly branch: number;
  readonly first_step: number;
  readonly last_step: number;
}

export interface RunDetail {
  readonly run: RunItem;
  readonly config: Readonly<Record<string, unknown>>;
  readonly group_names: readonly string[];
  readonly events: readonly RunEvent[];
  readonly branches: readonly Branch[];
  readonly command: string;
  readonly resume: string;
}

export interface HeatmapReply {
  readonly first: readonly number[];
  readonly last: readonly number[];
  readonly groups: readonly string[];
  readonly S: readonly (readonly (number | null)[])[];
}

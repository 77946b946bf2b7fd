/** One function per route of /api/v1. Every failure is an ApiError that says what to do. */

import { signal } from "@preact/signals";
import type {
  BandGroup,
  HeatmapReply,
  RunDetail,
  RunsReply,
  Series,
  SeriesAsk,
  SeriesRun,
  Spark,
  Viewer,
  XAxis,
} from "./types";

export const MOST_RUNS = 200;

export class ApiError extends Error {
  constructor(
    readonly reason: string,
    message: string,
  ) {
    super(message);
  }
}

const BASE = "api/v1/";

/** Why somebody must sign in, "" where that is no news; null while nobody must. */
export const signedOut = signal<string | null>(null);
let welcome = false;

async function call<T>(path: string, signal?: AbortSignal, body?: unknown): Promise<T> {
  let reply: Response;
  try {
    const init: RequestInit = { headers: { accept: "application/json" } };
    if (signal) init.signal = signal;
    if (body !== undefined) {
      init.method = "POST";
      init.headers = { ...init.headers, "content-type": "application/json" };
      init.body = JSON.stringify(body);
    }
    reply = await fetch(BASE + path, init);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("UNREACHABLE", "The server does not answer. Is `mechanicd serve` running?");
  }
  if (reply.ok) {
    welcome = true;
    return (await reply.json()) as T;
  }
  const said = (await reply.json().catch(() => null)) as { error?: { reason?: string; message?: string } } | null;
  const fallback = `The server answered ${reply.status} ${reply.statusText}. See its log.`;
  const error = new ApiError(said?.error?.reason ?? `HTTP_${reply.status}`, said?.error?.message ?? fallback);
  if (error.reason === "UNAUTHENTICATED" && path !== LOGIN) signedOut.value ??= welcome ? error.message : "";
  throw error;
}

const LOGIN = "login";
export const login = (token: string): Promise<Viewer> => call(LOGIN, undefined, { token });
export const logout = (): Promise<unknown> => call("logout", undefined, {});
/** Who the server takes this page's reader for. */
export const session = (): Promise<Viewer> => call("session");

const query = (fields: Record<string, string | number | null>): string => {
  const said = Object.entries(fields).filter(([, value]) => value !== null) as [string, string | number][];
  return said.map(([key, value]) => `${key}=${encodeURIComponent(value)}`).join("&");
};

/** All runs, archived ones too: the search decides. */
export const runs = (): Promise<RunsReply> => call(`runs?${query({ filter: "archived : *" })}`);

export const eventsAddress = (cursor: string): string => `${BASE}events?${query({ cursor })}`;

export async function series(names: readonly string[], ask: SeriesAsk, signal?: AbortSignal): Promise<SeriesRun[]> {
  const parts: readonly string[][] = Array.from({ length: Math.ceil(names.length / MOST_RUNS) }, (_, i) =>
    names.slice(i * MOST_RUNS, (i + 1) * MOST_RUNS),
  );
  const replies = await Promise.all(
    parts.map((part) => call<{ runs: SeriesRun[] }>("series", signal, { ...ask, runs: part })),
  );
  return replies.flatMap((reply) => reply.runs);
}

export const sparklines = (names: readonly string[]): Promise<Record<string, Spark>> =>
  call(`sparklines?${names.map((name) => query({ run: name })).join("&")}`);

export interface BandsAsk {
  readonly groups: readonly { readonly label: string; readonly runs: readonly string[] }[];
  readonly series: Series;
  readonly x: XAxis;
  readonly x0: number | null;
  readonly x1: number | null;
  readonly columns: number;
  readonly quantiles: readonly number[];
}
export const bands = (ask: BandsAsk, signal?: AbortSignal): Promise<{ groups: BandGroup[] }> =>
  call("bands", signal, ask);

export const run = (name: string, signal?: AbortSignal): Promise<RunDetail> => call(`run?${query({ name })}`, signal);

export const heatmap = (
  run: string,
  branch: number,
  x0: number | null,
  x1: number | null,
  columns: number,
  signal?: AbortSignal,
): Promise<HeatmapReply> => call(`heatmap?${query({ run, branch, x0, x1, columns })}`, signal);

export const exportAddress = (run: string, format: "csv" | "json", branch = 0): string =>
  `${BASE}export?${query({ run, format, branch })}`;

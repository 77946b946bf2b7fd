/** All runs, kept up to date by server-sent events; `connection` says whether they are. */

import { batch, computed, signal } from "@preact/signals";
import * as api from "./api";
import { signIn, takeToken, viewer } from "./session";
import type { RunItem, RunsDelta, RunsReply, ServerInfo } from "./types";

export type Connection =
  | { readonly state: "loading" }
  | { readonly state: "live" }
  | { readonly state: "out" }
  | { readonly state: "lost"; readonly since: number; readonly retryAt: number; readonly message: string };

export const connection = signal<Connection>({ state: "loading" });
export const server = signal<ServerInfo | null>(null);
export const runs = signal<ReadonlyMap<string, RunItem>>(new Map());
/** The names of the runs that changed last; charts follow it. */
export const touched = signal<readonly string[]>([]);
/** The server's clock, updated once a second. */
export const now = signal(Date.now());
export const anyRuns = computed(() => runs.value.size > 0);

const FIRST_WAIT = 500;
const LONGEST_WAIT = 15_000;
/** The server sends a comment every 10 s, but EventSource hides comments; so after this time the page asks. */
const QUIET = 15_000;

let source: EventSource | null = null;
let cursor = "";
/** The server's clock minus `performance.now()`, which no setting of this machine's clock moves. */
let clockAhead = Date.now() - performance.now();
let lastHeard = 0;
let wait = FIRST_WAIT;
let retry: ReturnType<typeof setTimeout> | undefined;

export function start(): void {
  setInterval(tick, 1000);
  addEventListener("online", retryNow);
  addEventListener("pagehide", () => source?.close());
  addEventListener("pageshow", (event) => {
    if (event.persisted) void connect();
  });
  addEventListener("hashchange", () => void enter());
  api.signedOut.subscribe((why) => {
    if (why !== null) leave();
    else if (connection.value.state === "out") begin();
  });
  void enter().then((entered) => {
    if (!entered) void connect();
  });
}

/** By the token of a link, if the address is one. */
async function enter(): Promise<boolean> {
  const token = takeToken();
  if (token === null) return false;
  leave();
  try {
    await signIn(token);
    if (connection.value.state === "out") begin(); // it was not signed out before
  } catch (error) {
    api.signedOut.value = error instanceof Error ? error.message : String(error);
  }
  return true;
}

/** From the start, as whoever is signed in now. */
function begin(): void {
  connection.value = { state: "loading" };
  wait = FIRST_WAIT;
  void connect();
}

/** Nothing that was shown before stays. */
function leave(): void {
  clearTimeout(retry);
  source?.close();
  source = null;
  cursor = "";
  batch(() => {
    connection.value = { state: "out" };
    viewer.value = null;
    server.value = null;
    runs.value = new Map();
    touched.value = [];
  });
}

export function retryNow(): void {
  if (connection.value.state !== "lost") return;
  clearTimeout(retry);
  void connect();
}

async function connect(): Promise<void> {
  source?.close();
  try {
    viewer.value = await api.session(); // an EventSource does not tell that it was refused
    if (connection.value.state === "loading" || cursor === "") takeAll(await api.runs());
    listen();
  } catch (error) {
    if (api.signedOut.value === null) lose(error instanceof Error ? error.message : String(error));
  }
}

function listen(): void {
  const opened = new EventSource(api.eventsAddress(cursor));
  source = opened;
  const heard = (event: MessageEvent<string>): void => {
    lastHeard = performance.now();
    if (event.lastEventId) cursor = event.lastEventId;
  };
  opened.onopen = () => {
    lastHeard = performance.now();
    wait = FIRST_WAIT;
    connection.value = { state: "live" };
  };
  opened.addEventListener("runs", (event: MessageEvent<string>) => {
    heard(event);
    takeDelta(JSON.parse(event.data) as RunsDelta);
  });
  opened.addEventListener("reset", (event: MessageEvent<string>) => {
    heard(event);
    takeAll(JSON.parse(event.data) as RunsReply);
  });
  opened.onerror = () => {
    opened.close();
    if (source === opened) lose("The connection to the server was lost.");
  };
}

function lose(message: string): void {
  source?.close();
  source = null;
  const before = connection.value;
  const since = before.state === "lost" ? before.since : Date.now();
  connection.value = { state: "lost", since, retryAt: performance.now() + wait, message };
  clearTimeout(retry);
  retry = setTimeout(() => void connect(), wait);
  wait = Math.min(LONGEST_WAIT, wait * 2);
}

function takeAll(reply: RunsReply): void {
  batch(() => {
    server.value = reply.server;
    cursor = reply.cursor;
    clockAhead = reply.now - performance.now();
    runs.value = new Map(reply.runs.map((run) => [run.name, run]));
    touched.value = reply.runs.map((run) => run.name);
    now.value = reply.now;
    if (connection.value.state !== "lost") connection.value = { state: "live" };
  });
}

function takeDelta(delta: RunsDelta): void {
  clockAhead = delta.now - performance.now();
  if (delta.runs.length === 0 && delta.gone.length === 0) return;
  const next = new Map(runs.value);
  for (const name of delta.gone) next.delete(name); // first: a name may have been taken anew
  for (const change of delta.runs) next.set(change.name, { ...next.get(change.name), ...change } as RunItem);
  batch(() => {
    runs.value = next;
    touched.value = delta.runs.map((run) => run.name);
    now.value = delta.now;
  });
}

function tick(): void {
  if (connection.value.state !== "live") return;
  now.value = performance.now() + clockAhead;
  if (performance.now() - lastHeard < QUIET && !server.value?.trouble) return;
  lastHeard = performance.now();
  api.runs().then(takeAll, (error: Error) => api.signedOut.value === null && lose(error.message));
}

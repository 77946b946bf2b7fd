/**
 * The search box: words that must all hold. Pure.
 *
 *     bert                     in the name, or in a label
 *     /seed[0-4]$/             a regular expression over project/run
 *     batch=256  batch!=256    a label; also project, status, needs. labels.status=x is the label
 *     opt~adam|lion            a regular expression over a label
 *     S<1e-6  step>=1000  lr>0.1  age>5min
 *     archived=true            archived runs, which are left out otherwise; archived=any: all runs
 *     -word                    not
 */

import { expression } from "./expression";
import { label, labelKey } from "./labels";
import { type RunItem, STATUSES } from "./types";

export type Predicate = (run: RunItem, now: number) => boolean;

export interface Query {
  readonly matches: Predicate;
  readonly problem: string | null;
}

// Maps, not objects: whatever is typed is looked up, and every object has a `constructor`.
const NUMBERS = new Map<string, (run: RunItem, now: number) => number | null>([
  ["s", (run) => run.S],
  ["step", (run) => run.step],
  ["lr", (run) => run.effective_lr],
  ["effective_lr", (run) => run.effective_lr],
  ["base_lr", (run) => run.base_lr],
  ["age", (run, now) => (run.step_time === null ? null : (now - run.step_time) / 1000)],
  ["interval", (run) => run.interval],
  ["sessions", (run) => run.sessions],
  ["rewinds", (run) => run.rewinds],
  ["groups", (run) => run.groups],
]);
const SECONDS = new Map(Object.entries({ "": 1, ms: 0.001, s: 1, m: 60, min: 60, h: 3600, d: 86400 }));
const OPERATION = /^(-|!(?!=))?([A-Za-z0-9][\w.-]*?)(<=|>=|!=|=|<|>|~)(.*)$/s;

export function parseQuery(text: string): Query {
  const predicates: Predicate[] = [];
  try {
    const all = words(text);
    for (const word of all) predicates.push(predicate(word));
    if (!all.some((word) => /^[-!]?archived!?=/.test(word))) predicates.push((run) => run.archive_time === null);
  } catch (error) {
    return { matches: () => true, problem: error instanceof Error ? error.message : String(error) };
  }
  return { matches: (run, now) => predicates.every((holds) => holds(run, now)), problem: null };
}

/** Splits at blanks outside of "quotes" and /expressions/. */
export function words(text: string): string[] {
  const found = text.match(/[-!]?\/(?:\\.|[^/\\])*\/i?(?=\s|$)|(?:"[^"]*"|[^\s"])+|"[^"]*$/gs) ?? [];
  return found;
}

const unquote = (text: string): string => text.replaceAll('"', "");

function predicate(word: string): Predicate {
  const operation = OPERATION.exec(word);
  if (operation) {
    const [, not, key = "", operator = "", value = ""] = operation;
    const holds = compare(key, operator, unquote(value));
    return not ? (run, now) => !holds(run, now) : holds;
  }
  const negative = /^[-!]./.test(word);
  const rest = negative ? word.slice(1) : word;
  const slashes = /^\/(.*)\/i?$/s.exec(rest);
  let holds: Predicate;
  if (slashes) {
    const pattern = expression(slashes[1] ?? "");
    holds = (run) => pattern.test(`${run.project}/${run.run}`);
  } else {
    const wanted = unquote(rest).toLowerCase();
    holds = (run) =>
      `${run.project}/${run.run}`.toLowerCase().includes(wanted) ||
      Object.entries(run.labels).some(([key, value]) => `${key}=${value}`.toLowerCase().includes(wanted));
  }
  return negative ? (run, now) => !holds(run, now) : holds;
}

function compare(key: string, operator: string, value: string): Predicate {
  const read = NUMBERS.get(key.toLowerCase());
  if (read && operator !== "~") return compareNumber(key, read, operator, value);
  if (operator === "<" || operator === ">" || operator === "<=" || operator === ">=") {
    return compareNumber(key, (run) => Number(label(run, key) ?? Number.NaN), operator, value);
  }
  const strings = (run: RunItem): readonly string[] => texts(key, run);
  if (operator === "~") {
    const pattern = expression(value);
    return (run) => strings(run).some((text) => pattern.test(text));
  }
  if (key === "status" && !STATUSES.some((status) => status === value.toLowerCase())) {
    throw new Error(`Unknown status "${value}". Choose one of ${STATUSES.join(", ")}.`);
  }
  if (key === "archived") {
    if (!["true", "false", "any"].includes(value))
      throw new Error("Write archived=true, archived=false or archived=any.");
    return (run) => value === "any" || ((run.archive_time !== null) === (value === "true")) === (operator === "=");
  }
  if (key === "needs" && (value === "any" || value === "none")) {
    const wanted = (value === "any") === (operator === "=");
    return (run) => run.needs.length > 0 === wanted;
  }
  const wanted = value.toLowerCase();
  const has: Predicate = (run) => strings(run).some((text) => text.toLowerCase() === wanted);
  return operator === "=" ? has : (run, now) => !has(run, now);
}

function texts(key: string, run: RunItem): readonly string[] {
  if (key === "status") return [run.status];
  if (key === "project") return [run.project];
  if (key === "run" || key === "name") return [run.run];
  if (key === "needs") return run.needs.map((need) => need.kind);
  const its = label(run, key);
  return its === undefined ? [] : [its];
}

function compareNumber(
  key: string,
  read: (run: RunItem, now: number) => number | null,
  operator: string,
  value: string,
): Predicate {
  const match = /^([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)([a-z]*)$/i.exec(value);
  const unit = match
    ? SECONDS.get(key === "age" || key === "interval" ? match[2]! : match[2] === "" ? "" : "none")
    : undefined;
  if (!match || unit === undefined) {
    const example = key === "age" ? "age>5min" : `${key}${operator}1e-6`;
    throw new Error(`"${key}${operator}${value}" needs a number, as in ${example}.`);
  }
  const bound = Number(match[1]) * unit;
  const test = TESTS[operator]!;
  return (run, now) => {
    const found = read(run, now);
    return found !== null && !Number.isNaN(found) && test(found, bound);
  };
}

const TESTS: Record<string, (a: number, b: number) => boolean> = {
  "<": (a, b) => a < b,
  ">": (a, b) => a > b,
  "<=": (a, b) => a <= b,
  ">=": (a, b) => a >= b,
  "=": (a, b) => a === b,
  "!=": (a, b) => a !== b,
};

/** The query with a word added, or removed if it was there. */
export function toggleWord(text: string, word: string): string {
  const all = words(text);
  const rest = all.filter((one) => one !== word);
  return (rest.length === all.length ? [...all, word] : rest).join(" ");
}

export const hasWord = (text: string, word: string): boolean => words(text).includes(word);

/** `key=value`, quoted if necessary; a regular expression if the value contains quotes. */
export function labelWord(ofLabel: string, value: string): string {
  const key = labelKey(ofLabel);
  if (!value.includes('"')) return /\s/.test(value) || value === "" ? `${key}="${value}"` : `${key}=${value}`;
  const plain = value.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return `${key}~^${plain.replaceAll('"', ".").replace(/\s/g, "\\s")}$`;
}

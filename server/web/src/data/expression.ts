/**
 * Regular expressions whose time is in proportion to the text's length: a link to the page may carry any, and the browser's own
 * engine needs years for some, such as (a+)+$. Pure.
 *
 * The syntax is the browser's, without look-around and back references, and ignores case. All ways through the expression are
 * followed at once, character by character (Thompson, "Regular Expression Search Algorithm", 1968).
 */

/** How long an expression may become, once its {counted} repetitions are written out. */
export const MOST_PARTS = 256;

export interface Expression {
  test(text: string): boolean;
}

interface Fork {
  readonly kind: "either";
  first: number;
  second: number;
}
type Assertion = "^" | "$" | "\\b" | "\\B";
type Part =
  | { readonly kind: "character"; readonly holds: (character: string) => boolean }
  | { readonly kind: "assertion"; readonly what: Assertion }
  | Fork
  | { readonly kind: "end" };

const ESCAPE = /\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|c[A-Za-z]|0|[\s\S])/y;
const REPETITION = /(?:([*+?])|\{(\d+)(?:(,)(\d*))?\})\??/y;
const SET = /\[(?:\\[\s\S]|[^\]\\])*\]/y;
const WORD = /\w/;

/** Throws an Error that says what is wrong. */
export function expression(source: string): Expression {
  try {
    new RegExp(source, "i");
  } catch (error) {
    const why = error instanceof Error ? error.message.replace(/^Invalid regular expression: /, "") : "";
    throw new Error(`Not a regular expression: ${why}`);
  }
  const parts = new Compiler(source).compile();
  return { test: (text) => search(parts, text) };
}

/** Writes the parts of an expression whose syntax is right. Each method returns what writes its piece, once or many times. */
class Compiler {
  private readonly parts: Part[] = [];
  private at = 0;

  constructor(private readonly source: string) {}

  compile(): readonly Part[] {
    this.alternatives()();
    this.add({ kind: "end" });
    return this.parts;
  }

  private add(part: Part): void {
    if (this.parts.length >= MOST_PARTS) {
      throw new Error(`The regular expression is too long: more than ${MOST_PARTS} parts.`);
    }
    this.parts.push(part);
  }

  private fork(first: number, second: number): Fork {
    const fork: Fork = { kind: "either", first, second };
    this.add(fork);
    return fork;
  }

  private alternatives(): () => void {
    let found = this.sequence();
    while (this.source[this.at] === "|") {
      this.at += 1;
      found = this.either(found, this.sequence());
    }
    return found;
  }

  private either(left: () => void, right: () => void): () => void {
    return () => {
      const fork = this.fork(this.parts.length + 1, 0);
      left();
      const leave = this.fork(0, 0);
      fork.second = this.parts.length;
      right();
      leave.first = this.parts.length;
      leave.second = leave.first;
    };
  }

  private sequence(): () => void {
    const pieces: (() => void)[] = [];
    while (this.at < this.source.length && this.source[this.at] !== "|" && this.source[this.at] !== ")") {
      pieces.push(this.repeated(this.atom()));
    }
    return () => {
      for (const piece of pieces) piece();
    };
  }

  private repeated(piece: () => void): () => void {
    const found = this.match(REPETITION);
    if (!found) return piece;
    const [, sign, low, comma, high] = found;
    const least = sign ? Number(sign === "+") : Number(low);
    const most = sign ? (sign === "?" ? 1 : Infinity) : comma ? (high ? Number(high) : Infinity) : least;
    return () => {
      for (let count = 0; count < least; count += 1) {
        const before = this.parts.length;
        piece();
        if (this.parts.length === before) break; // it is empty, as is any number of it
      }
      if (most === Infinity) {
        const start = this.parts.length;
        const fork = this.fork(start + 1, 0);
        piece();
        this.fork(start, start);
        fork.second = this.parts.length;
        return;
      }
      const forks: Fork[] = [];
      for (let count = least; count < most; count += 1) {
        forks.push(this.fork(this.parts.length + 1, 0));
        piece();
      }
      for (const fork of forks) fork.second = this.parts.length;
    };
  }

  private atom(): () => void {
    const character = this.source[this.at] ?? "";
    if (character === "(") return this.group();
    if (character === "^" || character === "$") return this.asserts(character, 1);
    if (character === "[") return this.character(this.match(SET)?.[0] ?? "");
    if (character === "\\") {
      const escaped = this.match(ESCAPE)?.[0] ?? "";
      if (escaped === "\\b" || escaped === "\\B") return this.asserts(escaped, 0);
      if (/^\\[1-9k]/.test(escaped)) throw new Error("Back references, such as \\1, are not supported.");
      return this.character(escaped);
    }
    this.at += 1;
    return this.character(character === "." ? character : character.replace(/[\]{}/]/, "\\$&"));
  }

  private group(): () => void {
    const opening = /\((?:\?(?::|<[\w$]+>))?(\?)?/y;
    if (this.match(opening)?.[1]) throw new Error("Look-around, such as (?=…), is not supported.");
    const inside = this.alternatives();
    this.at += 1; // the parenthesis
    return inside;
  }

  private asserts(what: Assertion, length: number): () => void {
    this.at += length;
    return () => this.add({ kind: "assertion", what });
  }

  /** A piece that matches one character: the browser's engine judges each once, and needs no time for that. */
  private character(source: string): () => void {
    const single = new RegExp(`^${source}$`, "i");
    const known = new Map<string, boolean>();
    const holds = (character: string): boolean => {
      const before = known.get(character);
      if (before !== undefined) return before;
      const found = single.test(character);
      known.set(character, found);
      return found;
    };
    return () => this.add({ kind: "character", holds });
  }

  private match(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.source);
    if (found) this.at = pattern.lastIndex;
    return found;
  }
}

function search(parts: readonly Part[], text: string): boolean {
  let here = new Set<number>();
  for (let at = 0; at <= text.length; at += 1) {
    if (reaches(parts, here, 0, text, at)) return true; // the expression may begin anywhere
    const next = new Set<number>();
    for (const place of here) {
      const part = parts[place];
      if (at < text.length && part?.kind === "character" && part.holds(text[at] ?? "")) {
        if (reaches(parts, next, place + 1, text, at + 1)) return true;
      }
    }
    here = next;
  }
  return false;
}

/** Adds a place, and all that is reached from there without a character, to `places`; true if the end is. */
function reaches(parts: readonly Part[], places: Set<number>, place: number, text: string, at: number): boolean {
  const waiting = [place];
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    const part = parts[next];
    if (!part || places.has(next)) continue;
    places.add(next);
    if (part.kind === "end") return true;
    if (part.kind === "either") waiting.push(part.second, part.first);
    if (part.kind === "assertion" && asserted(part.what, text, at)) waiting.push(next + 1);
  }
  return false;
}

function asserted(what: Assertion, text: string, at: number): boolean {
  if (what === "^") return at === 0;
  if (what === "$") return at === text.length;
  const edge = WORD.test(text[at - 1] ?? "") !== WORD.test(text[at] ?? "");
  return edge === (what === "\\b");
}

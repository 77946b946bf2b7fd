import assert from "node:assert/strict";
import { test } from "node:test";
import { expression } from "../src/data/expression";
import { parseQuery } from "../src/data/query";

const TEXTS = [
  "",
  "a",
  "A",
  "b",
  "ab",
  "aab",
  "abab",
  "a b",
  "bert/seed0",
  "x-1.5",
  "aaaaaaaa",
  "a]",
  "a{2",
  "_",
  "é",
  "\n",
  "a.b",
];
const SOURCES = [
  "", "a", "a|b", "^a", "b$", "^$", "(a|b)+$", "a{2}", "a{2,}", "a{1,2}$", "^(?:ab){2}$", "[ab]+$", "[^a]", "[]", "[^]", "[\\]]",
  "\\d", "\\w+\\s\\w", "\\bb", "\\Bb", "a.b", "a\\.b", "(a*)*b", "(a|a)*b", "(?<x>a)b", "a*?b", "a+?$", "a??b", "seed[0-4]$",
  "\\x61", "\\u0061b", "a{2", "]", "a||b", "(|a)b", "^a|b$", "[a-c-]", "[\\w.-]+5", "()*a", "É", "a\\/|t\\/s", "/", "\\-", "a{0}b", "(^a)+b",
]; // biome-ignore format: a list

test("it finds what the browser's own engine finds", () => {
  for (const source of SOURCES) {
    const ours = expression(source);
    const theirs = new RegExp(source, "i");
    for (const text of TEXTS)
      assert.equal(ours.test(text), theirs.test(text), `/${source}/ in ${JSON.stringify(text)}`);
  }
});

test("so it does for expressions made at random", () => {
  let seed = 7;
  const random = (count: number): number => {
    seed = (seed * 48271) % 2147483647;
    return seed % count;
  };
  const make = (depth: number): string => {
    const piece = random(depth > 0 ? 9 : 5);
    if (piece < 3) return ["a", "b", "."][piece] ?? "";
    if (piece === 3) return ["^", "$", "\\b", "\\B"][random(4)] ?? "";
    if (piece === 4) return ["[ab]", "[^a]", "\\w", "\\W"][random(4)] ?? "";
    if (piece < 7) return make(depth - 1) + make(depth - 1);
    if (piece === 7) return `(${make(depth - 1)}|${make(depth - 1)})`;
    return `(?:${make(depth - 1)})${["*", "+", "?", "{2}", "{1,3}", "{0,1}", "{2,}"][random(7)]}`;
  };
  for (let count = 0; count < 2000; count += 1) {
    const source = make(3);
    const text = Array.from({ length: random(7) }, () => ["a", "b", "B", " "][random(4)]).join("");
    assert.equal(expression(source).test(text), new RegExp(source, "i").test(text), `/${source}/ in "${text}"`);
  }
});

test("no expression hangs, whatever the text", () => {
  const text = `${"a".repeat(300)}!`;
  for (const source of ["(a+)+$", "(a|aa)+$", "(a*)*b", "^(a?){60}a{60}$", "(.*)(.*)(.*)(.*)=", "(\\w+\\s?)+$"]) {
    assert.equal(expression(source).test(text), false, source);
  }
});

test("what is too long, or not supported, is said in the search box", () => {
  const said = (text: string): string => parseQuery(text).problem ?? "";
  assert.match(said("/(a{100}){100}/"), /too long: more than 256 parts/);
  assert.match(said("opt~a{999999}"), /too long/);
  assert.equal(expression("((){99999999}){99999999}").test("a"), true);
  assert.match(said("/(?=a)/"), /Look-around/);
  assert.match(said("/(?<!a)b/"), /Look-around/);
  assert.match(said("/(a)\\1/"), /Back references/);
  assert.match(said("/(/"), /Not a regular expression/);
});

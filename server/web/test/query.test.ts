import assert from "node:assert/strict";
import { test } from "node:test";
import { labelKey } from "../src/data/labels";
import { compareRuns, facets, groupRuns, layOut } from "../src/data/order";
import { hasWord, labelWord, parseQuery, toggleWord, words } from "../src/data/query";
import { run } from "./made";

const NOW = 1_000_000;
const RUNS = [
  run({ run: "bert/seed0", labels: { batch: "256", opt: "adam w" }, S: 3e-7, step_time: NOW - 600_000 }),
  run({ run: "bert/seed1", labels: { batch: "512" }, S: 2e-3, step: 900, step_time: NOW }),
  run({ run: "gpt/seed0", labels: { batch: "256" }, S: null, status: "failed", step_time: null }),
  run({
    run: "vit/seed0",
    project: "other",
    S: 1e-9,
    needs: [{ kind: "collapsed", message: "S fell", step: 3 }],
    step_time: NOW,
  }),
];
const ARCHIVED = run({ run: "old/seed0", labels: { batch: "256" }, archive_time: NOW });
const found = (text: string): string[] => {
  const query = parseQuery(text);
  assert.equal(query.problem, null, text);
  return [...RUNS, ARCHIVED].filter((one) => query.matches(one, NOW)).map((one) => one.run);
};

test("what the search finds", () => {
  assert.equal(found("").length, 4);
  assert.deepEqual(found("bert"), ["bert/seed0", "bert/seed1"]);
  assert.deepEqual(found("BERT seed1"), ["bert/seed1"]);
  assert.deepEqual(found("/seed0$/"), ["bert/seed0", "gpt/seed0", "vit/seed0"]);
  assert.deepEqual(found("/^other\\//"), ["vit/seed0"]);
  assert.deepEqual(found("batch=256"), ["bert/seed0", "gpt/seed0"]);
  assert.deepEqual(found("batch!=256"), ["bert/seed1", "vit/seed0"]);
  assert.deepEqual(found("batch>256"), ["bert/seed1"]);
  assert.deepEqual(found('opt="adam w"'), ["bert/seed0"]);
  assert.deepEqual(found("opt~^adam"), ["bert/seed0"]);
  assert.deepEqual(found("S<1e-6"), ["bert/seed0", "vit/seed0"]);
  assert.deepEqual(found("S<1e-6 -vit"), ["bert/seed0"]);
  assert.deepEqual(found("-S<1e-6"), ["bert/seed1", "gpt/seed0"]);
  assert.deepEqual(found("step>=900"), ["bert/seed1"]);
  assert.deepEqual(found("age>5min"), ["bert/seed0"]);
  assert.deepEqual(found("status=failed"), ["gpt/seed0"]);
  assert.deepEqual(found("needs=any"), ["vit/seed0"]);
  assert.deepEqual(found("needs=collapsed"), ["vit/seed0"]);
  assert.deepEqual(found("needs!=any"), found("needs=none"));
  assert.deepEqual(found("project=other"), ["vit/seed0"]);
  assert.deepEqual(found("archived=true"), ["old/seed0"]);
  assert.deepEqual(found("archived!=false batch=256"), ["old/seed0"]);
  assert.deepEqual(found("archived=any batch=256"), ["bert/seed0", "gpt/seed0", "old/seed0"]);
  assert.deepEqual(found("-archived=true"), found(""));
});

test("a label may have any key, also one that every object has, or another field's", () => {
  const keys = [
    "constructor",
    "toString",
    "valueOf",
    "hasOwnProperty",
    "__proto__",
    "status",
    "project",
    "step",
    "S",
    "age",
  ];
  for (const key of [...keys, "needs", "name", "labels.status", "labels.x", "CONSTRUCTOR", "0"]) {
    const labels = JSON.parse(`{"${key}": "x y", "${key}.": "7"}`) as Record<string, string>;
    const runs = [run({ run: "with", labels }), run({ run: "without" })];
    const matching = (text: string): string[] => {
      const query = parseQuery(text);
      assert.equal(query.problem, null, text);
      return runs.filter((one) => query.matches(one, NOW)).map((one) => one.run);
    };
    if (key !== "__proto__") {
      assert.deepEqual(matching(labelWord(key, "x y")), ["with"], key);
      assert.deepEqual(matching(`-${labelWord(key, "x y")}`), ["without"], key);
      assert.deepEqual(matching(labelWord(key, 'a "b"')), [], key);
    }
    assert.deepEqual(matching(`labels.${key}.>6`), ["with"], key);
    assert.deepEqual(matching("x"), ["with"], key);
    const groups = groupRuns(runs, labelKey(key));
    assert.deepEqual([...groups.keys()], ["x y", "(none)"], key);
    assert.equal(facets(runs).get(key)?.get("x y"), 1, key);
  }
});

test("what every object has is no label and no unit", () => {
  for (const key of ["constructor", "toString", "hasOwnProperty", "isPrototypeOf", "valueOf"]) {
    assert.deepEqual(found(`${key}=x`), [], key);
    assert.equal(found(`${key}!=x`).length, 4, key);
    assert.deepEqual(found(`${key}>0`), [], key);
    assert.deepEqual(found(`${key}~.`), [], key);
    assert.equal(groupRuns(RUNS, key).size, 1, key);
    assert.match(parseQuery(`age>1${key}`).problem ?? "", /needs a number/, key);
  }
});

test("what can't be read is said, and hides nothing", () => {
  for (const [text, says] of [
    ["/[/", /regular expression/],
    ["S<many", /needs a number/],
    ["S<1min", /needs a number/],
    ["status=asleep", /running, silent/],
    ["opt~(", /regular expression/],
    ["archived=yes", /archived=true/],
  ] as const) {
    const query = parseQuery(text);
    assert.match(query.problem ?? "", says, text);
    assert.ok(query.matches(RUNS[0]!, NOW));
  }
});

test("words are put in and taken out", () => {
  assert.deepEqual(words('a  b="c d" /e f/ -g'), ["a", 'b="c d"', "/e f/", "-g"]);
  assert.equal(toggleWord("bert", labelWord("opt", "adam w")), 'bert opt="adam w"');
  assert.equal(toggleWord('bert opt="adam w"', 'opt="adam w"'), "bert");
  assert.ok(hasWord("a b", "b") && !hasWord("ab", "b"));
  for (const value of ["", "256", "adam w", 'say "(hi)" [now] \\d', "a=b<c"]) {
    const labelled = run({ run: "r", labels: { l: value, m: "x" } });
    const other = run({ run: "r", labels: { l: `${value}!` } });
    const text = `m=x ${labelWord("l", value)}`;
    const query = parseQuery(text);
    assert.equal(query.problem, null, text);
    assert.ok(query.matches(labelled, 0) && !query.matches(other, 0), text);
    assert.ok(hasWord(text, labelWord("l", value)), text);
  }
});

test("orders: who needs somebody is first, who has no value is last either way", () => {
  const sorted = (key: "needs" | "S", down: boolean): string[] =>
    [...RUNS].sort(compareRuns({ key, down })).map((one) => one.run);
  assert.equal(sorted("needs", false)[0], "vit/seed0");
  assert.deepEqual(sorted("S", false), ["vit/seed0", "bert/seed0", "bert/seed1", "gpt/seed0"]);
  assert.deepEqual(sorted("S", true), ["bert/seed1", "bert/seed0", "vit/seed0", "gpt/seed0"]);
});

test("pins come first, then groups in their natural order", () => {
  assert.deepEqual([...groupRuns(RUNS, "batch").keys()], ["256", "512", "(none)"]);
  const pinned = new Set([RUNS[1]!.name]);
  const rows = layOut(RUNS, pinned, "batch", new Set(["256"]));
  assert.deepEqual(
    rows.map((row) => (row.kind === "run" ? row.run.run : `${row.value}: ${row.runs.length}`)),
    ["bert/seed1", "256: 2", "(none): 1", "vit/seed0"],
  );
  assert.deepEqual(
    [...facets(RUNS)].map(([key, values]) => [key, [...values]]),
    [
      [
        "batch",
        [
          ["256", 2],
          ["512", 1],
        ],
      ],
      ["opt", [["adam w", 1]]],
    ],
  );
});

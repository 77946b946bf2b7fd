import assert from "node:assert/strict";
import { test } from "node:test";
import { age, compact, count, number, span } from "../src/format";

test("numbers read as people write them", () => {
  const said: [number | null | undefined, string][] = [
    [3.24e-4, "3.2e-4"],
    [1e-8, "1.0e-8"],
    [0.0123, "0.012"],
    [0.0099951, "0.010"],
    [0.5, "0.50"],
    [1, "1.0"],
    [12.34, "12"],
    [1234.5, "1,200"],
    [99_999, "1.0e5"],
    [3.4e7, "3.4e7"],
    [-2.5e-3, "−2.5e-3"],
    [0, "0"],
    [null, "–"],
    [undefined, "–"],
    [Number.NaN, "NaN"],
    [Number.POSITIVE_INFINITY, "∞"],
  ];
  for (const [value, words] of said) assert.equal(number(value), words);
  assert.equal(number(1.0049, 3), "1.00");
});

test("counts, ticks and spans", () => {
  assert.equal(count(1_234_567), "1,234,567");
  assert.deepEqual([0, 12, 1500, 20_000, 3e6].map(compact), ["0", "12", "1.5k", "20k", "3M"]);
  assert.deepEqual([400, 12_000, 300_000, 3 * 3_600_000, 4 * 86_400_000].map(span), [
    "400 ms",
    "12 s",
    "5 min",
    "3 h",
    "4 d",
  ]);
  assert.deepEqual([-50, 900, 3400, 61_000].map(age), ["now", "now", "3 s", "61 s"]);
});

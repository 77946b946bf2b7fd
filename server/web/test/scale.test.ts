import assert from "node:assert/strict";
import { test } from "node:test";
import { assign, ink } from "../src/charts/palette";
import { asinhThreshold, asinhTicks, evenTicks, fit, logTicks } from "../src/charts/scale";

test("log ticks are decades, thinned where many and finer where few", () => {
  assert.deepEqual(logTicks(3e-9, 2e-1, 5), [1e-8, 1e-6, 1e-4, 1e-2]);
  assert.deepEqual(logTicks(1e-3, 1, 8), [1e-3, 1e-2, 1e-1, 1]);
  assert.deepEqual(logTicks(0.9, 30, 6), [1, 2, 5, 10, 20]);
  assert.ok(logTicks(1.001, 1.002, 5).length >= 3);
});

test("every tick lies on its axis", () => {
  for (const [low, high] of [
    [1e-9, 1e9],
    [0.03, 0.05],
    [7, 7.0001],
  ] as const) {
    const air = 1e-6 * (high - low);
    for (const ticks of [logTicks(low, high, 6), evenTicks(low, high, 6)]) {
      assert.ok(ticks.length >= 2 && ticks.length <= 14);
      for (const tick of ticks) assert.ok(tick >= low - air && tick <= high + air, `${tick} in ${low}…${high}`);
    }
  }
  const ticks = asinhTicks(-50, 2e5, 1e-2, 6);
  assert.ok(ticks.includes(0) && ticks.some((tick) => tick < 0) && ticks.some((tick) => tick > 0));
});

test("a range shows all; on a log axis all that is positive", () => {
  const { low, high } = fit([1e-8, 0.5, -3], "log");
  assert.ok(low < 1e-8 && low > 1e-10 && high > 0.5 && high < 50);
  const linear = fit([-3, 4], "linear");
  assert.ok(linear.low < -3 && linear.high > 4);
  for (const kind of ["log", "linear", "asinh"] as const) {
    const { low: from, high: to } = fit([], kind);
    assert.ok(from < to);
    const flat = fit([5], kind);
    assert.ok(flat.low < 5 && flat.high > 5);
  }
  assert.equal(asinhThreshold([]), 1);
  assert.equal(asinhThreshold([0, 0.02, 3, 40, 500]), 1);
});

test("a run keeps its colour while others come and go", () => {
  const before = assign(["a", "b", "c"], new Map());
  const after = assign(["d", "b", "c", "e"], before);
  assert.equal(after.get("b"), before.get("b"));
  assert.equal(after.get("c"), before.get("c"));
  assert.equal(after.get("d"), 0);
  assert.equal(new Set(after.values()).size, 4);
  assert.notDeepEqual(ink(0), ink(8)); // the same hue, dashed
});

import assert from "node:assert/strict";
import { test } from "node:test";
import { geometry, nearest, type Projection, smooth } from "../src/charts/draw";
import { coarser, splice } from "../src/data/series";
import { columns, random } from "./made";

const WIDTH = 300;
const onto = (steps: number, log: boolean): Projection => ({
  x: (value) => ((value - 0.5) / steps) * WIDTH,
  y: (value) => -(log ? Math.log10(value) : value),
  log,
  floor: 1000,
});

test("no extreme is lost: what is drawn of a pixel column has the min and max of its raw values", () => {
  for (let seed = 1; seed <= 200; seed += 1) {
    const next = random(seed);
    const steps = 1 + Math.floor(next() * 5000);
    const size = 1 + Math.floor(next() * 40);
    const values = Array.from({ length: steps }, () => 1e-3 * (0.5 + next()));
    for (let i = 0; i < 5; i += 1) values[Math.floor(next() * steps)] = 10 ** (6 - 12 * next()); // spikes, up and down
    const log = seed % 2 === 0;
    const to = onto(steps, log);
    const drawn = geometry(columns(values, size), to);
    const top = new Map<number, number>();
    const bottom = new Map<number, number>();
    for (let i = 0; i < drawn.bars.length; i += 3) {
      const pixel = Math.floor(drawn.bars[i]!);
      top.set(pixel, Math.min(top.get(pixel) ?? Number.POSITIVE_INFINITY, drawn.bars[i + 1]!));
      bottom.set(pixel, Math.max(bottom.get(pixel) ?? Number.NEGATIVE_INFINITY, drawn.bars[i + 2]!));
    }
    const highest = new Map<number, number>();
    const lowest = new Map<number, number>();
    values.forEach((value, i) => {
      const first = Math.floor(i / size) * size;
      const wide = Math.min(size, steps - first);
      const pixel = Math.floor(to.x(first + (wide + 1) / 2));
      highest.set(pixel, Math.max(highest.get(pixel) ?? Number.NEGATIVE_INFINITY, value));
      lowest.set(pixel, Math.min(lowest.get(pixel) ?? Number.POSITIVE_INFINITY, value));
    });
    assert.deepEqual([...top.keys()], [...highest.keys()], `seed ${seed}`);
    for (const [pixel, value] of highest) assert.equal(top.get(pixel), to.y(value), `seed ${seed}, pixel ${pixel}`);
    for (const [pixel, value] of lowest) assert.equal(bottom.get(pixel), to.y(value), `seed ${seed}, pixel ${pixel}`);
  }
});

test("a log axis says where it has no place for a value", () => {
  const drawn = geometry(columns([1, -1, 0, 0, 2, 4], 2), onto(6, true));
  assert.equal(drawn.below.length, 2);
  assert.equal(drawn.bars[1], -0); // the max of the first column is 1: log 0
  assert.equal(drawn.bars[2], 1000); // its min is below: the bar goes down to the edge
  assert.ok(Number.isNaN(drawn.bars[4]!)); // nothing of the second one can be drawn
  assert.equal(geometry(columns([1, -1], 2), onto(2, false)).below.length, 0);
});

test("steps that are not finite are counted, and break no line", () => {
  const drawn = geometry(columns([1, Number.NaN, Number.NaN, Number.NaN, 3, 3], 2), onto(6, true));
  assert.equal(drawn.nonFinite.length, 2);
  assert.ok(Number.isNaN(drawn.line[3]!));
});

test("smoothing keeps a constant, has no bias at the start, and none at weight 0", () => {
  const flat = columns(Array(50).fill(2e-5), 1);
  for (const value of smooth(flat, 0.9, true)) assert.ok(Math.abs(value! / 2e-5 - 1) < 1e-12);
  const rising = columns([1, 10, 100], 1);
  assert.deepEqual(smooth(rising, 0, false), [1, 10, 100]);
});

test("the nearest column", () => {
  assert.equal(nearest([], 3), -1);
  assert.deepEqual(
    [0, 1.4, 1.6, 9].map((at) => nearest([1, 2, 4], at)),
    [0, 0, 1, 2],
  );
});

test("a tail takes the place of what it overlaps", () => {
  const before = columns([1, 2, 3, 4, 5, 6], 2);
  const all = columns([1, 2, 3, 4, 5, 7, 8, 9], 1);
  const tail = {
    ...all,
    ...Object.fromEntries(Object.entries(all).map(([key, list]) => [key, (list as number[]).slice(4)])),
  } as typeof all;
  const after = splice(before, tail);
  assert.deepEqual(after.first, [1, 3, 5, 6, 7, 8]);
  assert.deepEqual(after.last, [2, 4, 5, 6, 7, 8]);
  assert.deepEqual(after.max, [2, 4, 5, 7, 8, 9]);
  assert.equal(splice(before, { ...before, x: [], first: [], last: [] }), before);
});

test("a tail that takes more steps together than the line is coarser", () => {
  const exact = columns([1, 2, 3], 1);
  const pairs = columns([1, 2], 2);
  assert.equal(coarser(pairs, exact), true);
  assert.equal(coarser(exact, pairs), false);
  assert.equal(coarser(exact, exact), false);
});

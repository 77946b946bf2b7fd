import assert from "node:assert/strict";
import { test } from "node:test";
import { toFull, toShort } from "../src/data/names";
import { DEFAULT, formatView, parseView, type View } from "../src/view";

test("an address holds the whole view", () => {
  const views: View[] = [
    DEFAULT,
    {
      ...DEFAULT,
      query: 'S<1e-6 opt="a & b" /x#%?/',
      sort: { key: "S", down: true },
      group: "a b",
      closed: ["1,2", "3"],
    },
    { ...DEFAULT, selected: [toFull("p:bert/seed0"), toFull("q:x")], pinned: [toFull("p:y")], bands: false },
    { ...DEFAULT, series: "grad_norm", x: "time", y: "linear", smooth: 0.9, x0: 1.5, x1: 1e12 },
    { ...DEFAULT, page: "run", run: toFull("p:a/b/c"), scale: 3, branch: 1 },
    { ...DEFAULT, page: "compare", runs: [toFull("p:a"), toFull("p:b")] },
  ];
  for (const view of views) assert.deepEqual(parseView(formatView(view)), view);
  assert.equal(formatView(DEFAULT), "#/");
  assert.equal(formatView(views[4]!), "#/run/p:a/b/c?scale=3&branch=1");
});

test("an address that is broken still opens", () => {
  for (const hash of ["", "#", "#/nowhere", "#/?sort=x.y&series=zz&x0=abc&smooth=7&y=q", "#/run/%E0%A4%A"]) {
    assert.ok(parseView(hash).series === "S");
  }
  assert.equal(parseView("#/?smooth=7").smooth, 0.99);
});

test("names are short in addresses", () => {
  assert.equal(toShort("projects/p/runs/bert/seed0"), "p:bert/seed0");
  assert.equal(toFull("p:bert/seed0"), "projects/p/runs/bert/seed0");
});

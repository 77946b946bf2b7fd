/** Two runs (or a few): their curves on one chart, and how they differ. */

import { useState } from "preact/hooks";
import * as api from "../data/api";
import { useFetched } from "../data/fetched";
import { label } from "../data/labels";
import { runs } from "../data/live";
import type { RunDetail } from "../data/types";
import { count, number } from "../format";
import { Icon } from "../parts/icons";
import { Swatch } from "../parts/Legend";
import { overviewAddress, runAddress, view } from "../view";
import { ChartPanel, useInks } from "./ChartPanel";
import { plain } from "./Facts";

const MOST = 6;

export function Compare() {
  const names = view.value.runs.slice(0, MOST);
  const inks = useInks(names);
  const [onlyDifferent, setOnlyDifferent] = useState(true);
  const { value, error } = useFetched(names.join(","), (signal) =>
    Promise.all(names.map((name) => api.run(name, signal))),
  );
  if (names.length < 2) {
    return (
      <main class="lonely">
        <h1>Nothing to compare</h1>
        <p>Select at least two runs in the table with x, then press c.</p>
        <a class="button" href={overviewAddress()}>
          All runs
        </a>
      </main>
    );
  }
  const rows = value ? table(value) : [];
  const different = rows.filter((row) => row.different);
  return (
    <main class="compare">
      <header class="run-head">
        <a class="back" href={overviewAddress()} title="All runs (Escape)">
          <Icon name="back" /> All runs
        </a>
        <h1>Compare {names.length} runs</h1>
      </header>
      <ChartPanel names={names} inks={inks} chosen={false} groups={null} height={320} says={`${names.length} runs`} />
      <section class="panel" aria-label="Differences">
        <div class="panel-head">
          <h2>Differences</h2>
          <label class="tick">
            <input
              type="checkbox"
              checked={!onlyDifferent}
              onChange={(event) => setOnlyDifferent(!event.currentTarget.checked)}
            />
            show equal rows too
          </label>
        </div>
        {error && <p class="bad pad">{error.message}</p>}
        <div class="diff-scroll">
          <table class="diff">
            <thead>
              <tr>
                <th scope="col">
                  <span class="sr">What</span>
                </th>
                {names.map((name) => (
                  <th scope="col" key={name}>
                    <Swatch ink={inks.get(name)!} />
                    <a href={runAddress(name)}>{runs.value.get(name)?.run ?? name}</a>
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {(onlyDifferent ? different : rows).map((row) => (
                <tr key={row.name} class={row.different ? "different" : ""}>
                  <th scope="row">{row.name}</th>
                  {row.values.map((value, i) => (
                    <td key={names[i]}>{value}</td>
                  ))}
                </tr>
              ))}
              {value && onlyDifferent && different.length === 0 && (
                <tr>
                  <td colSpan={names.length + 1}>Only their names differ.</td>
                </tr>
              )}
            </tbody>
          </table>
        </div>
      </section>
    </main>
  );
}

interface DiffRow {
  readonly name: string;
  readonly values: readonly string[];
  readonly different: boolean;
}

/** One row for each fact about the runs, then one for each label and setting. Pure. */
export function table(details: readonly RunDetail[]): DiffRow[] {
  const row = (name: string, read: (detail: RunDetail) => string): DiffRow => {
    const values = details.map(read);
    return { name, values, different: new Set(values).size > 1 };
  };
  const keys = (of: (detail: RunDetail) => object): string[] =>
    [...new Set(details.flatMap((one) => Object.keys(of(one))))].sort();
  return [
    row("status", ({ run }) => run.status),
    row("step", ({ run }) => count(run.step)),
    row("S now", ({ run }) => number(run.S, 3)),
    row("effective lr", ({ run }) => number(run.effective_lr, 3)),
    row("sessions", ({ run }) => count(run.sessions)),
    row("rewinds", ({ run }) => count(run.rewinds)),
    row("needs", ({ run }) => run.needs.map((need) => need.kind).join(", ") || "–"),
    ...keys(({ run }) => run.labels).map((key) => row(`label ${key}`, ({ run }) => label(run, key) ?? "–")),
    ...keys((one) => one.config).map((key) => row(key, ({ config }) => plain(config[key]))),
    row("command", (one) => one.command || "–"),
  ];
}

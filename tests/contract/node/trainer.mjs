// Trains ½‖x‖² by gradient descent, one scale group a coordinate, as told by lines of JSON on stdin; answers each with a line.
//
//   node trainer.mjs TARGET RUN GROUPS [OPTIONS OF THE CHANNEL AS JSON]

import { createInterface } from "node:readline";
import { readFileSync, writeFileSync } from "node:fs";
import { Refused, Session } from "./client.mjs";

const [target, name, count, options = "{}"] = process.argv.slice(2);
const groups = Array.from({ length: Number(count) }, (_, i) => `layer.${i}.weight`);
const session = new Session(target, name, { scale_groups: groups }, JSON.parse(options));
const at = { step: 0, x_ref: groups.map((_, i) => 5 + i / 7), delta: groups.map(() => 0) };
const x = () => at.x_ref.map((value, i) => value + (session.scale[i] ?? 0) * at.delta[i]);

const commands = {
  async open({ config, start = {}, read_mask }) {
    if (config) Object.assign(session.given, config);
    const { tuner_state, run, ...opened } = await session.open(start, read_mask);
    return { ...opened, state_bytes: tuner_state.length, run: run?.name ?? null };
  },
  async resume({ file }) {
    const { state, ...saved } = JSON.parse(readFileSync(file, "utf8"));
    Object.assign(at, saved);
    const { outcome, scale } = await session.open({ tuner_state: Buffer.from(state, "base64") });
    return { outcome, step: at.step, scale };
  },
  async step({ count: steps = 1 }) {
    const taken = [];
    for (let i = 0; i < steps; i++) {
      const g = x();
      const reductions = {
        delta_dot_g: g.map((value, k) => at.delta[k] * value),
        delta_dot_x: g.map((value, k) => at.delta[k] * value),
        g_norm_sq: g.map((value) => value * value),
        x_norm_sq: g.map((value) => value * value),
      };
      await session.step(at.step + 1, reductions, 1);
      at.step += 1;
      at.delta = at.delta.map((value, k) => value - g[k]);
      taken.push(session.scale);
    }
    return { step: at.step, connected: session.connected, scales: taken, x: x() };
  },
  async checkpoint({ file }) {
    const { state, own } = await session.checkpoint();
    writeFileSync(file, JSON.stringify({ ...at, state: state.toString("base64") }));
    return { state: state.toString("hex"), own: own.toString("hex") };
  },
  async close({ status }) {
    const { status: now, durable_step } = await session.close(status);
    return { status: now, durable_step: Number(durable_step) };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: command, ...given } = JSON.parse(line);
  try {
    console.log(JSON.stringify(await commands[command](given)));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    const { reason, message, fields, metadata } = error;
    console.log(JSON.stringify({ refused: reason, message, fields, metadata }));
    if (reason === "SESSION_FENCED") process.exit(3); // a successor trains
  }
}
process.exit(0);

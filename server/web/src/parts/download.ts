/** Saves what is on the screen, or what the store has. */

import type uPlot from "uplot";
import { exportAddress } from "../data/api";
import { toShort } from "../data/names";
import { colour } from "../theme";
import type { Entry } from "./Legend";

function save(address: string, name: string): void {
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
}

const fileName = (text: string): string => text.replace(/[^A-Za-z0-9._-]+/g, "_");

/** Every exact step of a run, streamed by the server. */
export const saveRun = (name: string, format: "csv" | "json", branch = 0): void =>
  save(exportAddress(name, format, branch), `${fileName(toShort(name))}.${format}`);

/** The chart with its title and legend, in the size and resolution of the screen. */
export function savePng(plot: uPlot, title: string, entries: readonly Entry[]): void {
  const ratio = devicePixelRatio;
  const source = plot.ctx.canvas;
  const line = 18 * ratio;
  const columns = Math.max(1, Math.floor(source.width / (260 * ratio)));
  const head = 34 * ratio;
  const foot = (Math.ceil(entries.length / columns) + 1) * line;
  const canvas = document.createElement("canvas");
  canvas.width = source.width;
  canvas.height = source.height + head + foot;
  const context = canvas.getContext("2d")!;
  const font = "Inter, ui-sans-serif, system-ui, sans-serif";
  context.fillStyle = colour("--surface");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = colour("--ink");
  context.font = `600 ${14 * ratio}px ${font}`;
  context.fillText(title, 14 * ratio, 22 * ratio);
  context.drawImage(source, 0, head);
  context.font = `${11 * ratio}px ${font}`;
  entries.forEach((entry, i) => {
    const x = 14 * ratio + (i % columns) * 260 * ratio;
    const y = head + source.height + line * (Math.floor(i / columns) + 0.8);
    context.strokeStyle = colour(entry.ink.property);
    context.lineWidth = 2.5 * ratio;
    context.setLineDash(entry.ink.dash.map((d) => d * ratio));
    context.beginPath();
    context.moveTo(x, y - 4 * ratio);
    context.lineTo(x + 18 * ratio, y - 4 * ratio);
    context.stroke();
    context.fillText(entry.label, x + 26 * ratio, y, 225 * ratio);
  });
  canvas.toBlob((blob) => {
    if (!blob) return;
    const address = URL.createObjectURL(blob);
    save(address, `${fileName(title)}.png`);
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }, "image/png");
}

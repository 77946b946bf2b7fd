/** Light or dark: the system's choice, or the reader's. Canvases get their colors here. */

import { effect, signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";
const KEY = "mechanicd.theme";
const system = matchMedia("(prefers-color-scheme: dark)");

export const theme = signal<Theme>("system");
/** Which one is on the screen; canvases are redrawn when it changes. */
export const dark = signal(system.matches);

export function followTheme(): void {
  const kept = read();
  if (kept === "light" || kept === "dark") theme.value = kept;
  system.addEventListener("change", apply);
  effect(apply);
}

function apply(): void {
  const chosen = theme.value;
  if (chosen === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  colours.clear();
  dark.value = chosen === "system" ? system.matches : chosen === "dark";
}

export function toggleTheme(): void {
  theme.value = dark.value ? "light" : "dark";
  write(theme.value);
}

function read(): string | null {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // storage is off
  }
}

function write(value: string): void {
  try {
    localStorage.setItem(KEY, value);
  } catch {
    // storage is disabled: the choice lasts as long as the page
  }
}

const colours = new Map<string, string>();

/** The current value of a custom property of the style sheet: `colour("--ink")`. */
export function colour(property: string): string {
  let found = colours.get(property);
  if (found === undefined) {
    const probe = document.createElement("i");
    probe.style.color = `var(${property})`;
    document.body.append(probe);
    found = getComputedStyle(probe).color;
    probe.remove();
    colours.set(property, found);
  }
  return found;
}

/** Copies a text, and confirms it. */

import { useState } from "preact/hooks";
import { Icon } from "./icons";

async function copy(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea"); // over plain HTTP from another host there is no clipboard
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export function CopyButton({ text }: { text: string }) {
  const [said, setSaid] = useState("");
  const tell = (words: string): void => {
    setSaid(words);
    setTimeout(() => setSaid(""), 2000);
  };
  return (
    <button
      type="button"
      class="button"
      onClick={() =>
        copy(text).then(
          () => tell("Copied"),
          () => tell("Please copy by hand"),
        )
      }
    >
      <Icon name={said === "Copied" ? "check" : "copy"} />
      <span aria-live="polite">{said || "Copy"}</span>
    </button>
  );
}

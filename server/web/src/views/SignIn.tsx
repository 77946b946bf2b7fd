/** The door: a token, typed once. */

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { signIn } from "../data/session";

export function SignIn({ why }: { why: string }) {
  const field = useRef<HTMLInputElement>(null);
  const says = useSignal(why);
  const busy = useSignal(false);
  useEffect(() => field.current?.focus(), []);
  useEffect(() => {
    says.value = why;
  }, [why]);

  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    const token = field.current?.value ?? "";
    if (busy.value) return;
    if (token.trim() === "") {
      says.value = "Type a token, or paste one.";
      return;
    }
    busy.value = true;
    try {
      await signIn(token);
    } catch (error) {
      busy.value = false;
      says.value = error instanceof Error ? error.message : String(error);
      field.current?.select();
    }
  };

  return (
    <main class="lonely">
      <h1>Sign in</h1>
      <form class="sign-in" onSubmit={submit} noValidate>
        <label for="token">Token</label>
        <input
          id="token"
          ref={field}
          type="password"
          autocomplete="current-password"
          spellcheck={false}
          required
          aria-invalid={says.value !== ""}
          aria-describedby="sign-in-says"
        />
        <button type="submit" class="button" aria-disabled={busy.value}>
          Sign in
        </button>
        <p id="sign-in-says" class="bad" role="alert">
          {says.value}
        </p>
      </form>
      <p>
        Did you start this server yourself? On its machine, <code>mechanicd tokens local --page {location.origin}</code>{" "}
        prints a link that signs you in.
      </p>
      <p>
        Otherwise ask whoever runs it for a token: <code>mechanicd tokens create --role read --project …</code> makes
        one.
      </p>
    </main>
  );
}

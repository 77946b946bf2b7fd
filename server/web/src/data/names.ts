/** `projects/p/runs/a/b` in the API, `p:a/b` in addresses. Neither `:` nor `,` can be in a name. */

const FULL = /^projects\/([^/]+)\/runs\/(.+)$/;

export const toShort = (name: string): string => name.replace(FULL, "$1:$2");

export const toFull = (short: string): string => short.replace(/^([^:]+):(.+)$/, "projects/$1/runs/$2");

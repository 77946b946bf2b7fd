import { defineConfig } from "vite";

// The page is served from any prefix, under `default-src 'self'`: relative addresses, nothing inlined.
export default defineConfig({
  base: "./",
  build: {
    outDir: "../mechanicd/dashboard/static",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
  },
  server: { proxy: { "/api": process.env.MECHANICD_HTTP ?? "http://127.0.0.1:8080" } },
});

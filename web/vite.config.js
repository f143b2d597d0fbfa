// The front end is built to be embedded in the server's binary: every path is absolute under /graphql, every asset has
// a hash in its name, and what shrinks well has a gzip copy beside it.
import { gzipSync } from 'node:zlib';
import { defineConfig } from 'vite';

const gzip = {
  name: 'gzip',
  apply: 'build',
  generateBundle: {
    order: 'post',
    handler(_options, bundle) {
      for (const file of Object.values(bundle)) {
        if (/\.(css|js|svg)$/.test(file.fileName)) {
          const source = gzipSync(file.type === 'chunk' ? file.code : file.source, { level: 9 });
          this.emitFile({ type: 'asset', fileName: `${file.fileName}.gz`, source });
        }
      }
    },
  },
};

export default defineConfig({
  base: '/graphql/',
  // Everything comes from files: the page's policy allows no inline script, and images only a little in data URLs.
  build: { assetsInlineLimit: 0, chunkSizeWarningLimit: 4096, modulePreload: { polyfill: false } },
  plugins: [gzip],
});

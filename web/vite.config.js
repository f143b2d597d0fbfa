// The front end is embedded in the binary of the server: paths are absolute under /graphql, the names of assets contain a
// hash, and text files have a gzip copy.
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
  // The policy of the page allows no inline scripts, so everything is loaded from files.
  build: { assetsInlineLimit: 0, chunkSizeWarningLimit: 4096, modulePreload: { polyfill: false } },
  plugins: [gzip],
});

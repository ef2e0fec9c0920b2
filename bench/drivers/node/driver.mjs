// Picks ports with one Node package when the benchmark asks for them.
//
//     node driver.mjs TOOL [FIRST-LAST]
//
// The conversation is in bench/README.md, "Drivers".

import { createInterface } from 'node:readline';

const [name, range] = process.argv.slice(2);
const [first, last] = range ? range.split('-').map(Number) : [];

// Returns the function that picks a port, as its documentation shows it first.
async function tool() {
  switch (name) {
    case 'detect-port': {
      const { detectPort } = await import('detect-port');
      return () => detectPort();
    }
    case 'get-port': {
      const { default: getPort, portNumbers } = await import('get-port');
      return range ? () => getPort({ port: portNumbers(first, last) }) : () => getPort();
    }
    case 'get-port-please': {
      const { getPort } = await import('get-port-please');
      return range ? () => getPort({ portRange: [first, last] }) : () => getPort();
    }
    case 'get-port-please-random': {
      const { getRandomPort } = await import('get-port-please');
      return () => getRandomPort();
    }
    case 'portfinder': {
      const { default: portfinder } = await import('portfinder');
      return range
        ? () => portfinder.getPortPromise({ port: first, stopPort: last })
        : () => portfinder.getPortPromise();
    }
    default:
      throw new Error(`there is no tool "${name}"`);
  }
}

const pick = await tool();
console.log('ready');
for await (const line of createInterface({ input: process.stdin })) {
  const [word, count] = line.split(' ');
  if (word !== 'pick') throw new Error(`"${line}"?`);
  const picked = ['picked'];
  for (let i = 0; i < Number(count); i++) {
    const start = process.hrtime.bigint();
    // Each package has its own error for the same: it found none.
    const port = await pick().catch(() => null);
    const end = process.hrtime.bigint();
    picked.push(port === null ? '-' : `${port}:${end - start}`);
  }
  console.log(picked.join(' '));
}

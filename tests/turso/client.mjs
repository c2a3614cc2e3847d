// A process with one open database of the published Node client, driven by lines of JSON: see `client.py`, its twin.

import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

// The packages are not beside this file: `run` installs them under the target directory.
const installed = createRequire(`${process.env.TURSO_NODE_PACKAGES}/package.json`);
const { connect } = await import(pathToFileURL(installed.resolve('@tursodatabase/sync')));

let database;

function bootstrapStrategy({ prefix, query }) {
    if (prefix !== undefined) return { kind: 'prefix', length: prefix };
    if (query !== undefined) return { kind: 'query', query };
    return undefined;
}

const operations = {
    async open({ path, url, options }) {
        const strategy = bootstrapStrategy(options);
        database = await connect({
            path,
            url,
            authToken: options.auth_token,
            longPollTimeoutMs: options.long_poll_timeout_ms,
            pushOperationsThreshold: options.push_operations_threshold,
            pullBytesThreshold: options.pull_bytes_threshold,
            remoteWritesExperimental: options.remote_writes,
            partialSyncExperimental: strategy && {
                bootstrapStrategy: strategy,
                segmentSize: options.segment_size,
                prefetch: options.prefetch,
            },
        });
    },
    async execute({ sql, args }) {
        await (await database.prepare(sql)).run(...args);
    },
    // All rows in one transaction.
    async execute_many({ sql, rows }) {
        await database.exec('BEGIN');
        const statement = await database.prepare(sql);
        for (const row of rows) await statement.run(...row);
        await database.exec('COMMIT');
    },
    rows: async ({ sql, args }) => (await database.prepare(sql)).raw().all(...args),
    push: () => database.push(),
    pull: () => database.pull(),
    checkpoint: () => database.checkpoint(),
    revision: async () => (await database.stats()).revision,
    close: () => database.close(),
};

for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    let answer;
    try {
        answer = { ok: (await operations[request.op](request)) ?? null };
    } catch (error) {
        answer = { error: `${error.name}: ${error.message}` };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
}

// What each program here does: run its checks one after the other, each on a log of its own, and print a line of JSON for each.

import { mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const SERVICE = process.env.LOGMIRROR_URL;
export const PACKAGES = process.env.CLIENTS_NODE_PACKAGES;
const CHECK_TIMEOUT_MS = 60_000;

// The packages are not beside this file: `run` installs them under the target directory.
const installed = createRequire(`${PACKAGES}/package.json`);

/** Load a package as its users do with `import`, or with `require` where it has no other form. */
export const load = async (name) => {
    const module = await import(pathToFileURL(installed.resolve(name)));
    return module.default && Object.keys(module).length <= 2 ? { ...module.default, ...module } : module;
};

/** The version that is installed. */
export const versionOf = (name) => installed(`${PACKAGES}/node_modules/${name}/package.json`).version;

let logs = 0;

/** Make a log; returns its URL. */
export async function createLog(name) {
    const log = `${name.replace(/[^a-z0-9]+/gi, '-').replace(/^-/, '')}-${process.pid}-${++logs}`.toLowerCase();
    const answer = await fetch(`${SERVICE}/logs/${log}`, { method: 'PUT', body: '{"format":"wal"}' });
    if (answer.status !== 201) throw new Error(`PUT /logs/${log}: ${answer.status} ${await answer.text()}`);
    // With the slash: these clients resolve their paths against the URL, as a browser does.
    return `${SERVICE}/logs/${log}/`;
}

/** Rows by plain HTTP, without any client: as arrays of what JSON has. */
export async function plainRows(url, sql) {
    const body = JSON.stringify({ requests: [{ type: 'execute', stmt: { sql } }] });
    const answer = await (await fetch(`${url}v2/pipeline`, { method: 'POST', body })).json();
    const [result] = answer.results;
    if (result.type !== 'ok') throw new Error(result.error.message);
    return result.response.result.rows.map((row) => row.map((value) => value.value ?? value.base64 ?? null));
}

/** The checks of one client, of which there must be so many: one that did not run is a failure when the program ends. */
export class Checks {
    #client;
    #version;
    #ran = 0;

    constructor(client, packageName, expected) {
        this.#client = client;
        this.#version = versionOf(packageName);
        process.on('exit', () => {
            if (this.#ran === expected) return;
            this.#print('(the number of checks)', `${this.#ran} ran, ${expected} are expected`);
            process.exitCode ||= 1;
        });
    }

    #print(check, error) {
        console.log(JSON.stringify({ client: this.#client, version: this.#version, check, error }));
    }

    /** Run `body` with the URL of a new log and a directory; its result is printed, and never thrown. */
    async check(check, body) {
        const home = mkdtempSync(join(tmpdir(), 'logmirror-clients-'));
        let error = null;
        let timer;
        try {
            const url = await createLog(this.#client);
            const late = new Promise((_, reject) => {
                timer = setTimeout(() => reject(new Error(`cut after ${CHECK_TIMEOUT_MS} ms`)), CHECK_TIMEOUT_MS);
            });
            await Promise.race([body(url, home), late]);
        } catch (caught) {
            error = String(caught?.message ?? caught).slice(0, 600) || String(caught);
        } finally {
            clearTimeout(timer);
            rmSync(home, { recursive: true, force: true });
        }
        this.#ran += 1;
        this.#print(check, error);
    }
}

/** Fails unless `body` does; returns the error. */
export async function errorOf(body) {
    try {
        await body();
    } catch (error) {
        return error;
    }
    throw new Error('this must not work');
}

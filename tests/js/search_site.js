/* node tests/js/search_site.js SITE: reads a JSON array of queries, and prints the titles of the hits that the search box
   of a built site shows first for each. The site's own program searches, which a browser runs as a worker. */

import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { runInThisContext } from "node:vm";

const [SET_UP, READY, QUERY, RESULT] = [0, 1, 2, 3];
const site = process.argv[2];
const folder = join(site, "assets", "javascripts", "workers");
const program = readdirSync(folder).find((name) => /^search\..*\.js$/.test(name));
const index = JSON.parse(readFileSync(join(site, "search.json"), "utf8"));

let answered;
const worker = { postMessage: (message) => answered(message) };
runInThisContext(`(function (self) {${readFileSync(join(folder, program), "utf8")}})`)(worker);

/* The data of the worker's answer. */
async function ask(type, data, expected) {
    const answer = new Promise((resolve) => {
        answered = resolve;
    });
    worker.onmessage({ data: { type, data } });
    const message = await answer;
    if (message.type !== expected) throw new Error(`message ${message.type} in answer to ${type}`);
    return message.data;
}

await ask(SET_UP, index, READY);
const found = [];
for (const input of JSON.parse(readFileSync(0, "utf8"))) {
    const { items } = await ask(QUERY, { input }, RESULT);
    found.push(items.map(({ id }) => index.items[id].title.replace(/<[^>]+>/g, "")));
}
console.log(JSON.stringify(found));

// Tells the scripts which server they talk to, runs their checks, and prints what came of them.

export const [url, model] = process.argv.slice(2); // the URL is the server's, without /v1
export const api = `${url}/v1`;
export const question = "What is an octavo?";
export const limit = 24; // tokens: the model is slow on two cores, and what it says is not judged

export async function run(...checks) {
  let failed = 0;
  for (const check of checks) {
    try {
      await check();
      console.log(`  ok      ${check.name}`);
    } catch (error) {
      failed += 1;
      console.log(`  failed  ${check.name}\n`, error);
    }
  }
  process.exit(failed);
}

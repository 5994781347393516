// Streams events with @grpc/grpc-js as fast as possible. Arguments: client id, number of streams, events per stream.
'use strict';
const path = require('path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [clientId, streams, events] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const proto = path.resolve(__dirname, '../../proto');
const definition = loader.loadSync('metering/v1/usage_service.proto', {
  includeDirs: [proto], keepCase: true, longs: Number, enums: String, defaults: true,
});
const { UsageService } = grpc.loadPackageDefinition(definition).metering.v1;
const options = { 'grpc.max_receive_message_length': 16 << 20 };
const service = new UsageService(process.env.METERD_SERVER, grpc.credentials.createInsecure(), options);
const errors = [];
let [settled, duplicates, slowest, done] = [0, 0, 0, false];

function run(number) {
  return new Promise((resolve) => {
    let seen = 0;
    const call = service.StreamUsage({ deadline: Date.now() + 300_000 });
    call.on('data', (ack) => {
      settled += ack.settled_count - seen;
      seen = ack.settled_count;
      for (const { result } of ack.results) {
        if (result.outcome === 'EVENT_OUTCOME_DUPLICATE') duplicates += 1;
        else errors.push(JSON.stringify(result));
      }
    });
    call.on('error', (error) => {
      errors.push(`${grpc.status[error.code]}: ${error.details}`);
      resolve();
    });
    call.on('end', resolve);
    let event = 0;
    const write = () => {
      while (event < events) {
        const more = call.write({
          event: { client_id: clientId, service: 'email', idempotency_key: `${number}-${event}` },
        });
        event += 1;
        if (!more) return call.once('drain', write);
      }
      call.end();
    };
    write();
  });
}

// Runs a health check on the same connection. The request is an empty message.
function check() {
  const bytes = (value) => value;
  return new Promise((resolve) => {
    const started = process.hrtime.bigint();
    service.makeUnaryRequest('/grpc.health.v1.Health/Check', bytes, bytes, Buffer.alloc(0), (error) => {
      if (error) errors.push(`health: ${grpc.status[error.code]}: ${error.details}`);
      slowest = Math.max(slowest, Number(process.hrtime.bigint() - started) / 1e6);
      resolve();
    });
  });
}

async function otherCalls() {
  while (!done) {
    await check();
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function main() {
  console.log('streaming');
  const others = otherCalls();
  await Promise.all(Array.from({ length: streams }, (_, number) => run(number)));
  done = true;
  await others;
  service.close();
  console.log(JSON.stringify({
    settled, duplicates, slowest_check_ms: Math.round(slowest), errors: errors.slice(0, 3),
  }));
}

main();

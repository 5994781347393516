// Records one event. The program reads the proto files when it starts, so no code is generated.
import path from 'node:path';
import * as grpc from '@grpc/grpc-js';
import * as loader from '@grpc/proto-loader';

const definition = loader.loadSync('metering/v1/usage_service.proto', {
  includeDirs: [path.resolve(__dirname, '../../proto')],
  enums: String,
  longs: String,
  defaults: true,
});
const { UsageService } = (grpc.loadPackageDefinition(definition) as any).metering.v1;
const meterd = new UsageService(process.env.METERD_SERVER ?? '127.0.0.1:50051', grpc.credentials.createInsecure());

function print(error: grpc.ServiceError | null, answer: any) {
  if (error) throw error;
  const { outcome, charge } = answer.result;
  console.log(outcome, charge.amount, charge.currency);
}

const event = { clientId: 'acme', service: 'openai', operation: 'chat_completion', model: 'gpt-4o-mini',
  inputTokens: 374, outputTokens: 44, idempotencyKey: 'call-1' };
meterd.TrackUsage({ event }, { deadline: Date.now() + 10_000 }, print);

/* Runs one part of a bundle in C: raw float32 in, raw float32 out.
 *
 *   cc run.c -o run -I <onnxruntime>/include -L <onnxruntime>/lib -l onnxruntime
 *   ./run score.onnx < examples.f32 > scores.f32
 *
 * <onnxruntime> is the folder of an ONNX Runtime release, with its header and library; a distribution's
 * libonnxruntime-dev will do too. The input holds whole examples one after another, each in the order of the part's input
 * shape; the first output is written.
 */

#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>

static const OrtApi *ort;

static void check(OrtStatus *status) {
  if (status == NULL) return;
  fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
  exit(1);
}

static void fail(const char *message) {
  fprintf(stderr, "%s\n", message);
  exit(1);
}

/* Reads all of standard input. */
static char *read_all(size_t *size) {
  size_t room = 1 << 16, read;
  char *bytes = malloc(room);
  *size = 0;
  while (bytes != NULL && (read = fread(bytes + *size, 1, room - *size, stdin)) > 0) {
    *size += read;
    if (*size == room) bytes = realloc(bytes, room *= 2);
  }
  if (bytes == NULL) fail("Out of memory.");
  return bytes;
}

int main(int argc, char **argv) {
  if (argc != 2) fail("Usage: run <part.onnx> < examples.f32 > outputs.f32");
  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (ort == NULL) fail("The library is older than the header that this program was compiled with.");

  OrtEnv *env;
  OrtSessionOptions *options;
  OrtSession *session;
  OrtAllocator *allocator;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "run", &env));
  check(ort->CreateSessionOptions(&options));
  check(ort->CreateSession(env, argv[1], options, &session));
  check(ort->GetAllocatorWithDefaultOptions(&allocator));

  size_t inputs;
  check(ort->SessionGetInputCount(session, &inputs));
  if (inputs != 1) fail("This program is for parts with one input.");
  char *input_name, *output_name;
  check(ort->SessionGetInputName(session, 0, allocator, &input_name));
  check(ort->SessionGetOutputName(session, 0, allocator, &output_name));

  /* The shape of one example; the batch comes first. */
  OrtTypeInfo *type;
  const OrtTensorTypeAndShapeInfo *info;
  ONNXTensorElementDataType element;
  size_t rank;
  int64_t shape[16];
  check(ort->SessionGetInputTypeInfo(session, 0, &type));
  check(ort->CastTypeInfoToTensorInfo(type, &info));
  check(ort->GetTensorElementType(info, &element));
  check(ort->GetDimensionsCount(info, &rank));
  if (element != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) fail("This program is for parts that take float32.");
  if (rank > 16) fail("The input has more than 16 dimensions.");
  check(ort->GetDimensions(info, shape, rank));
  size_t example = sizeof(float), size;
  for (size_t i = 1; i < rank; i++) {
    if (shape[i] < 1) fail("This program is for parts whose examples have a fixed size.");
    example *= (size_t)shape[i];
  }
  char *bytes = read_all(&size);
  if (size == 0 || size % example != 0) fail("The input must hold whole examples, as float32.");
  shape[0] = (int64_t)(size / example);

  OrtMemoryInfo *memory;
  OrtValue *input, *output = NULL;
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  check(ort->CreateTensorWithDataAsOrtValue(memory, bytes, size, shape, rank, element, &input));
  const char *input_names[] = {input_name}, *output_names[] = {output_name};
  check(ort->Run(session, NULL, input_names, (const OrtValue *const *)&input, 1, output_names, 1, &output));

  OrtTensorTypeAndShapeInfo *answered;
  size_t count;
  void *values;
  check(ort->GetTensorTypeAndShape(output, &answered));
  check(ort->GetTensorElementType(answered, &element));
  check(ort->GetTensorShapeElementCount(answered, &count));
  check(ort->GetTensorMutableData(output, &values));
  if (element != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) fail("This program is for parts that give float32.");
  if (fwrite(values, sizeof(float), count, stdout) != count || fflush(stdout) != 0) fail("The output can't be written.");

  ort->ReleaseTensorTypeAndShapeInfo(answered);
  ort->ReleaseValue(output);
  ort->ReleaseValue(input);
  ort->ReleaseMemoryInfo(memory);
  ort->ReleaseTypeInfo(type);
  check(ort->AllocatorFree(allocator, input_name));
  check(ort->AllocatorFree(allocator, output_name));
  ort->ReleaseSession(session);
  ort->ReleaseSessionOptions(options);
  ort->ReleaseEnv(env);
  free(bytes);
  return 0;
}

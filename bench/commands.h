/* The parts of qlora-bench: each takes the arguments that follow its name, and returns the exit status. */
#ifndef QL_BENCH_COMMANDS_H
#define QL_BENCH_COMMANDS_H

int bench_matmul(int argc, char **argv);
int bench_report(int argc, char **argv);
int bench_ops(int argc, char **argv);
int bench_lora(int argc, char **argv);
int bench_step(int argc, char **argv);
int bench_regions(int argc, char **argv);

#endif

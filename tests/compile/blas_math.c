/* blas_math.c - a main for the test blas_math, which is compiled with -Dmain=blas_math: that object has the arithmetic, too, and
   what takes the longest to compile is linked to every other test. */
int blas_math(int argc, char **argv);
int main(int argc, char **argv) { return blas_math(argc, argv); }

/* The scalar kernels: they define the answer that every other table gives, bit for bit. */
#define KERNEL_TARGET
#include "kernels_generic.h"

KERNEL_TABLE(scalar, code_dot, edge_near);

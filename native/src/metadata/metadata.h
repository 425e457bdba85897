/* Contract of metadata/: reading the metadata of rows, which is CBOR.  It depends on base alone, and on no index. */
#ifndef FVDB_METADATA_H
#define FVDB_METADATA_H

#include "../base/base.h"

/* ---- read_field.c ---- */

/* As fvdb_read_field. */
fvdb_status read_field(const fvdb_field *field, fvdb_cells *cells, fvdb_diag *diag);

#endif

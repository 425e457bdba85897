/* Texts of the status codes. */
#include "base.h"

const char *status_text(fvdb_status status) {
    switch (status) {
    case FVDB_OK: return "ok";
    case FVDB_ERR_ARGUMENT: return "an argument is out of range";
    case FVDB_ERR_NOT_FINITE: return "a vector holds NaN or infinity";
    case FVDB_ERR_ZERO_VECTOR: return "a zero vector has no direction, which cosine needs";
    case FVDB_ERR_ID: return "an id is empty, too long or not UTF-8";
    case FVDB_ERR_DUPLICATE_ID: return "duplicate id";
    case FVDB_ERR_NOT_FOUND: return "not found";
    case FVDB_ERR_MEMORY: return "allocation failed";
    case FVDB_ERR_CANCELLED: return "cancelled";
    case FVDB_ERR_BUFFER: return "a buffer is too small";
    case FVDB_ERR_FORMAT: return "the bytes break the format";
    case FVDB_ERR_BUSY: return "busy";
    case FVDB_ERR_TOO_MANY: return "too many rows or id bytes";
    case FVDB_ERR_THREAD: return "a thread or lock could not be created";
    case FVDB_ERR_TOO_FEW: return "too few rows";
    case FVDB_ERR_UNTRAINED: return "there are no lists yet";
    }
    return "unknown status";
}

/* Scores: what users see of a distance, from 0 to 1, larger for nearer rows.
 *
 * A score falls with the distance, so that a threshold cuts off the end of an answer.  No bit of an index depends on one. */
#include "index.h"

#include <math.h>

/* exp(-745) is about the least double; beyond, no double tells a logistic function from 0 or 1. */
#define LOGISTIC_MOST 745.0

/* 1 / (1 + exp(-x)), without overflow on either side. */
static double logistic(double x) {
    const double shrunk = exp(-fmin(fabs(x), LOGISTIC_MOST));
    return x < 0 ? shrunk / (1.0 + shrunk) : 1.0 / (1.0 + shrunk);
}

void index_scores(uint32_t metric, const double *distances, uint32_t n, double *out) {
    for (uint32_t i = 0; i < n; i++) {
        const double d = distances[i];
        out[i] = metric == FVDB_METRIC_COSINE ? 1.0 - d / 2.0
                 : metric == FVDB_METRIC_L2   ? 1.0 / (1.0 + d)
                                              : logistic(-d);
    }
}

/* One step of all cells of `bess_sim.cells.CellBank`, in two halves around the currents of the packs.
 *
 * The same operations in the same order as the numpy code there, so that the results are equal to the last bit:
 * compile without contraction to fused multiply-adds. Arrays are [rows][cols], row = pack; `flow`, `sums` and
 * `totals` hold one value per pack in each of their rows; the cells of a pack are the first `sizes` of its row.
 */
#include <math.h>
#include <stdint.h>

typedef struct {
  int64_t rows, cols, table, bleeding, heated, lossy;
  double dt;
  const int64_t *sizes;
  const double *gain, *offset, *slope, *base, *ae, *k_eta, *k, *b0, *half_c1, *e_th, *to_ambient, *heat_k, *heating;
  const double *bleed, *flow;
  double *charge, *v1, *voltage, *temperature, *loss, *line, *rc, *sums, *totals;
} Cells;

/* In the order of numpy.add.reduce over contiguous values: eight partial sums. */
static double sum(const double *a, int64_t n) {
  if (n < 8) {
    double s = -0.0;
    for (int64_t i = 0; i < n; i++) s += a[i];
    return s;
  }
  if (n > 128) {
    int64_t half = n / 2;
    half -= half % 8;
    return sum(a, half) + sum(a + half, n - half);
  }
  double r[8];
  int64_t i;
  for (i = 0; i < 8; i++) r[i] = a[i];
  for (; i < n - n % 8; i += 8)
    for (int j = 0; j < 8; j++) r[j] += a[i + j];
  double s = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
  for (; i < n; i++) s += a[i];
  return s;
}

/* Voltage A + B I of each cell, and the sums of A and B of each pack. */
void cells_open(const Cells *c) {
  const int64_t n = c->rows * c->cols;
  double *a = c->line, *b = c->line + n, *kept = c->rc + n;
  for (int64_t i = 0; i < n; i++) {
    double x = c->charge[i] * c->gain[i] + c->offset[i];
    int64_t at = (int64_t)x;
    if (at < 0) at = 0;
    if (at >= c->table) at = c->table - 1;
    const double slope = c->slope[at];
    x = x * slope + c->base[at]; /* open circuit */
    c->rc[i] = c->ae[i] * c->v1[i];
    kept[i] = c->ae[n + i] * c->v1[i];
    a[i] = x + c->rc[i];
    b[i] = slope * c->k_eta[i] + c->b0[i];
    if (c->bleeding) a[i] -= (slope * c->k[i] + c->b0[i]) * c->bleed[i];
  }
  for (int64_t row = 0; row < c->rows; row++) {
    c->sums[row] = sum(a + row * c->cols, c->cols);
    c->sums[c->rows + row] = sum(b + row * c->cols, c->cols);
  }
}

/* Charge, RC voltage, heat and temperature at the end of the step; of each pack its lowest and highest voltage and the
 * charge of its cells. */
void cells_close(const Cells *c) {
  const int64_t n = c->rows * c->cols;
  const double *b = c->line + n, *mean = c->line + 2 * n, *gained = c->line + 3 * n, *kept = c->rc + n;
  for (int64_t row = 0; row < c->rows; row++) {
    const double current = c->flow[row], moved = c->flow[c->rows + row], lost = c->flow[2 * c->rows + row];
    double low = INFINITY, high = -INFINITY, held = 0.0;
    for (int64_t i = row * c->cols; i < (row + 1) * c->cols; i++) {
      const double inner = c->bleeding ? current - c->bleed[i] : current;
      const double v = c->line[i] + b[i] * current;
      c->voltage[i] = v;
      double w = mean[i] * inner + c->rc[i]; /* heat, W */
      if (c->lossy) {
        const double open_circuit = v - w;
        w = w * inner + open_circuit * lost;
      } else {
        w = w * inner;
      }
      if (c->bleeding) {
        w += v * c->bleed[i];
        c->charge[i] -= c->bleed[i] * (c->dt / 3600.0);
      }
      const double v1 = kept[i] + gained[i] * inner;
      w += (c->v1[i] - v1) * (c->v1[i] + v1) * c->half_c1[i];
      c->v1[i] = v1;
      c->charge[i] += moved;
      if (i - row * c->cols < c->sizes[row]) {
        if (v < low) low = v;
        if (v > high) high = v;
        held += c->charge[i];
      }
      double t = c->temperature[i] * c->e_th[i] + c->to_ambient[i];
      t += w * c->heat_k[i];
      if (c->heated) t += c->heating[i] * c->heat_k[i];
      c->temperature[i] = t;
      c->loss[i] += w;
    }
    c->totals[row] = low;
    c->totals[c->rows + row] = high;
    c->totals[2 * c->rows + row] = held;
  }
}

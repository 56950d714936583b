/* One step of all cells of `bess_sim.cells.CellBank`.
 *
 * The same operations in the same order as the numpy code there, so that the results are equal to the last bit:
 * compile without contraction to fused multiply-adds. Arrays are [rows][cols], row = pack; `eta`, `full` and `power`
 * hold one value per pack, `packs` one per pack in each of its rows (see PACKS); the cells of a pack are the first
 * `sizes` of its row.
 */
#include <math.h>
#include <stdint.h>

typedef struct {
  int64_t rows, cols, table, grid, bleeding, heated;
  double dt;
  const int64_t *sizes;
  const double *gain, *offset, *slope, *base, *energy, *ae, *eta, *full;
  const double *k, *b0, *half_c1, *e_th, *to_ambient, *heat_k, *heating;
  const double *bleed, *power;
  double *charge, *v1, *voltage, *temperature, *loss, *line, *rc, *packs;
} Cells;

/* Rows of `packs`, in the order of `PACKS` in cell_kernel.py. */
enum { LOW, HIGH, CURRENT, VOLTAGE, DC_ENERGY, ROOM, REACH, TOLD };

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

/* Voltage A + B I of each cell of a pack. */
static void open_half(const Cells *c, int64_t row, double eta) {
  const int64_t n = c->rows * c->cols;
  double *a = c->line, *b = c->line + n, *kept = c->rc + n;
  for (int64_t i = row * c->cols; i < (row + 1) * c->cols; i++) {
    double x = c->charge[i] * c->gain[i] + c->offset[i];
    int64_t at = (int64_t)x;
    if (at < 0) at = 0;
    if (at >= c->table) at = c->table - 1;
    const double slope = c->slope[at];
    x = x * slope + c->base[at]; /* open circuit */
    c->rc[i] = c->ae[i] * c->v1[i];
    kept[i] = c->ae[n + i] * c->v1[i];
    a[i] = x + c->rc[i];
    b[i] = slope * (c->k[i] * eta) + c->b0[i];
    if (c->bleeding) a[i] -= (slope * c->k[i] + c->b0[i]) * c->bleed[i];
  }
}

/* As `power_to_current` in chemistry.py. */
static double current_of(double power, double volts, double ohms) {
  const double root = volts * volts + 4.0 * ohms * power;
  if (root <= 0.0) return -volts / (2.0 * ohms);
  return 2.0 * power / (volts + sqrt(root));
}

/* As `CellBank.told_energy`. */
static double told_energy(const Cells *c, int64_t row, double held) {
  const double *curve = c->energy + (int64_t)c->offset[row * c->cols], level = held / c->full[row];
  int64_t k = (int64_t)(level * c->grid); /* what is not a number is out of range and stays within the table */
  if (k > c->grid - 1) k = c->grid - 1;
  if (k < 0) k = 0;
  return (curve[k] + (curve[k + 1] - curve[k]) * (level * c->grid - k)) * (c->full[row] / c->grid);
}

/* Charge, RC voltage, heat and temperature of the cells of a pack at the end of the step. */
static void close_half(const Cells *c, int64_t row, double current, double moved, double lost, int lossy) {
  const int64_t n = c->rows * c->cols;
  const double *b = c->line + n, *mean = c->line + 2 * n, *gained = c->line + 3 * n, *kept = c->rc + n;
  double low = INFINITY, high = -INFINITY, held = 0.0;
  for (int64_t i = row * c->cols; i < (row + 1) * c->cols; i++) {
    const double inner = c->bleeding ? current - c->bleed[i] : current;
    const double v = c->line[i] + b[i] * current;
    c->voltage[i] = v;
    double w = mean[i] * inner + c->rc[i]; /* heat, W */
    if (lossy) {
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
  c->packs[LOW * c->rows + row] = low;
  c->packs[HIGH * c->rows + row] = high;
  c->packs[TOLD * c->rows + row] = told_energy(c, row, held);
}

/* A step with `power` (W) at the terminals of each pack. */
void cells_step(const Cells *c) {
  const int64_t rows = c->rows, n = rows * c->cols;
  const double hours = c->dt / 3600.0;
  double *packs = c->packs;
  int lossy = 0;
  for (int64_t row = 0; row < rows; row++) lossy |= c->power[row] > 0.0 && c->eta[row] != 1.0;
  for (int64_t row = 0; row < rows; row++) {
    const double power = c->power[row], eta = power > 0.0 ? c->eta[row] : 1.0;
    open_half(c, row, eta);
    const double ohms = sum(c->line + n + row * c->cols, c->cols);
    double volts = sum(c->line + row * c->cols, c->cols);
    double current = power != 0.0 ? current_of(power, volts, ohms) : 0.0;
    double *room = packs + ROOM * rows + row, *reach = packs + REACH * rows + row;
    double moved = current * eta * hours;
    if (moved > *room || moved < -*reach) { /* no cell leaves SoC 0..1 */
      if (moved < -*reach) moved = -*reach;
      if (moved > *room) moved = *room;
      current = moved / (eta * hours);
    }
    *room -= moved;
    *reach += moved;
    volts += ohms * current;
    packs[CURRENT * rows + row] = current;
    packs[VOLTAGE * rows + row] = volts;
    packs[DC_ENERGY * rows + row] += volts * current * c->dt;
    close_half(c, row, current, moved, (1.0 - eta) * current, lossy);
  }
}

# The median of numbers that are separated by spaces.
function median(list,    value, n, i, j, swap) {
    n = split(list, value, " ")
    for (i = 2; i <= n; i++)
        for (j = i; j > 1 && value[j] + 0 < value[j - 1] + 0; j--) {
            swap = value[j]; value[j] = value[j - 1]; value[j - 1] = swap
        }
    return value[int((n + 1) / 2)]
}

// What each Gaussian contributes to the last image, for pruning: a pass over the tiles like the
// forward one, Gaussian-outer.

void contributions(Workspace&, const Contributions&, int) {}

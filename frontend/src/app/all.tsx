import type { Store } from "./store.js";
export function AllKernels({ store }: { store: Store }) { return <canvas width={store.width.value} height={100} />; }

/** How maps are looked at: what the explorer's addresses say of them, and a page that is a file only knows itself. */

export const PHOTO_COLORS = ["group", "response"] as const;
export type PhotoColors = (typeof PHOTO_COLORS)[number];

export const UNIT_COLORS = ["family", "r2_interior", "r2", "r2_rectified", "r2_random", "r2_average_map"] as const;
export type UnitColors = (typeof UNIT_COLORS)[number];

/** How the maps of images are looked at; null: as it is best for the data. */
export interface TrajectoryView {
  at: string | null; // the layer
  colors: PhotoColors | null;
  pictures: boolean | null; // else dots
  chosen: readonly number[];
}

/** How the map of units is looked at; null: as it is best for the data, or none. */
export interface AtlasView {
  unit: number | null;
  colors: UnitColors | null;
  kernel: string | null; // as `kernelName` writes it
}

export const WHOLE_TRAJECTORY: TrajectoryView = { at: null, colors: null, pictures: null, chosen: [] };
export const WHOLE_ATLAS: AtlasView = { unit: null, colors: null, kernel: null };

/** Looks at a map in another way: as a step that Back undoes, or in place of the last. */
export type Change<View> = (part: Partial<View>, instead?: boolean) => void;

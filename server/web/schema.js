// Makes JSON schemas readable: a type in words, and the fields of an object as rows of a table.

const DEEPEST = 4; // levels of objects within objects

/** Reads the schemas of one OpenAPI document. */
export class Schemas {
  constructor(document) {
    this.components = document.components.schemas;
  }

  /** Returns what a $ref stands for, and anything else as it is. */
  resolve(schema) {
    return schema.$ref ? this.components[schema.$ref.split("/").pop()] : schema;
  }

  /** Returns the alternatives of a schema, without null, which always means absent. */
  alternatives(schema) {
    const found = this.resolve(schema);
    const parts = found.anyOf ?? found.oneOf;
    if (!parts) return found.type === "null" ? [] : [found];
    return parts.flatMap((part) => this.alternatives(part));
  }

  /** Returns a type in words: "number from 0 to 2", "string or array of strings". */
  type(schema) {
    return [...new Set(this.alternatives(schema).map((part) => this.name(part)))].join(" or ");
  }

  name(schema) {
    if (schema.const !== undefined) return JSON.stringify(schema.const);
    if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
    if (schema.type === "array") return `array of ${(schema.items && this.type(schema.items)) || "anything"}${size(schema)}`;
    return `${schema.type ?? "anything"}${bounds(schema)}`;
  }

  /** Returns [{name, type, required, description}] of an object and of those within it: `messages[].role`. */
  rows(schema, prefix = "", depth = 0) {
    const found = this.resolve(schema);
    const required = (key) => (found.required ?? []).includes(key);
    const fields = Object.entries(found.properties ?? {}).sort(([a], [b]) => required(b) - required(a));
    return fields.flatMap(([key, value]) => {
      const row = {
        name: prefix + key,
        type: this.type(value),
        required: required(key),
        description: value.description ?? "",
      };
      return [row, ...(depth < DEEPEST ? this.within(value, prefix + key, depth + 1) : [])];
    });
  }

  within(schema, path, depth) {
    return this.alternatives(schema).flatMap((part) => {
      if (part.properties) return this.rows(part, `${path}.`, depth);
      return part.type === "array" && part.items ? this.within(part.items, `${path}[]`, depth) : [];
    });
  }
}

function bounds({ minimum, maximum, exclusiveMaximum, maxLength }) {
  const far = (value) => value === undefined || Math.abs(value) >= 2 ** 31;
  const most = maximum ?? (Number.isInteger(exclusiveMaximum) ? exclusiveMaximum - 1 : exclusiveMaximum);
  if (maxLength !== undefined) return ` of at most ${maxLength} characters`;
  if (far(minimum)) return far(most) ? "" : ` up to ${most}`;
  return far(most) ? ` from ${minimum}` : ` from ${minimum} to ${most}`;
}

function size({ minItems, maxItems }) {
  if (maxItems !== undefined) return ` (at most ${maxItems})`;
  return minItems ? ` (at least ${minItems})` : "";
}

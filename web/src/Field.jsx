// A labelled form field with its error message.
import { useId } from 'react';

export function Field({ label, error, children, ...input }) {
  const id = useId();
  const shared = {
    id,
    'aria-invalid': Boolean(error),
    'aria-describedby': error ? `${id}-error` : undefined,
    ...input,
  };
  return (
    <div>
      <label htmlFor={id}>{label}</label>
      {children ? <select {...shared}>{children}</select> : <input {...shared} />}
      {error && (
        <p id={`${id}-error`} className="error">
          {error}
        </p>
      )}
    </div>
  );
}

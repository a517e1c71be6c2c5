{{/* The container that turns authentication on. The pod is not ready, and so in no Service, before it has. */}}

{{- define "lattice.authContainer" -}}
- name: auth
  image: {{ .Values.auth.image | quote }}
  imagePullPolicy: {{ .Values.imagePullPolicy }}
  command: ["python3", "-u", "-B", "/opt/lattice-rdzv/auth.py"]
  env:
    - name: AUTH_URL
      value: {{ printf "%s://127.0.0.1:%d" (include "lattice.clientScheme" .) (int .Values.clientService.internalPort) | quote }}
    - name: AUTH_PORT
      value: {{ .Values.auth.port | quote }}
    - name: AUTH_USERS
      value: {{ .Values.auth.users | toJson | quote }}
    - name: AUTH_SECRETS
      value: /etc/lattice-rdzv/auth
    {{- if .Values.tls.client.enabled }}
    - name: AUTH_TLS
      value: /etc/lattice-rdzv/tls/client
    # Its certificate is for the Service's name, not for 127.0.0.1.
    - name: AUTH_TLS_NAME
      value: {{ include "lattice.clientHost" . | quote }}
    {{- end }}
  ports:
    - name: auth
      containerPort: {{ .Values.auth.port }}
  readinessProbe:
    httpGet:
      path: /ready
      port: auth
    periodSeconds: {{ .Values.probes.readiness.periodSeconds }}
    timeoutSeconds: {{ .Values.probes.readiness.timeoutSeconds }}
    failureThreshold: {{ .Values.probes.readiness.failureThreshold }}
  livenessProbe:
    httpGet:
      path: /alive
      port: auth
    periodSeconds: {{ .Values.probes.liveness.periodSeconds }}
    timeoutSeconds: {{ .Values.probes.liveness.timeoutSeconds }}
    failureThreshold: {{ .Values.probes.liveness.failureThreshold }}
  {{- with .Values.auth.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- include "lattice.containerSecurityContext" . | nindent 2 }}
  volumeMounts:
    - name: auth
      mountPath: /etc/lattice-rdzv/auth
      readOnly: true
    - name: auth-script
      mountPath: /opt/lattice-rdzv
      readOnly: true
    {{- if .Values.tls.client.enabled }}
    - name: client-tls
      mountPath: /etc/lattice-rdzv/tls/client
      readOnly: true
    {{- end }}
{{- end -}}
